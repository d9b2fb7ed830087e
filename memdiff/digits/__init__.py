"""The digits models as they are loaded: they need no download. benchmarks/embedded_models makes their weights.

classifiers  The two digit classifiers: one rewards, the other only judges. Different architectures
judge        An outside view of digit images
paths        Where the embedded weights lie. Imports no torch, so that a recipe can name them cheaply
scans        The data behind the embedded models: scikit-learn's bundled handwritten digits, at 16 x 16
"""
