"""The digits models as they are loaded: they need no download. benchmarks/embedded_models makes their weights.

classifiers  The two digit classifiers: one rewards, the other only judges. Different architectures, seeds and features
judge        An outside view of digit images: `python -m memdiff.digits.judge FOLDER [--num-images 400] [--json FILE]`
paths        Where the embedded weights lie. Imports no torch, so that a recipe can name them cheaply
scans        The data behind the embedded models: scikit-learn's bundled handwritten digits, at 16 x 16
"""
