"""Rewards: images_BCHW in [0, 1] and prompts -> rewards_B. One file per family.

backbones        Networks that several parts of a reward read: loaded once, and run once for the same images
build            From recipe sections to rewards. Each family's module is imported only where a recipe asks for it
classifier       A Hugging Face image classifier as a reward, its label chosen by name
clip             Rewards on CLIP: LAION aesthetic, PickScore, HPSv2, plain similarity. One network
clip_heads       Heads on CLIP's image embedding: affine layers (LAION aesthetic), or the cosine to the prompt's
confidence       From the log-probability of a label to a score
config           Recipe section `reward`: a list of weighted parts
detection        Objects named in words, found by OWL-ViT or OWLv2: add, remove, count. Differentiable in the logits
digits           The embedded digit classifiers as rewards
families_config  Recipe parts of the reward families with public weights, and of JPEG
guards           Guards against over-optimisation: how much the images of a batch differ, and when to raise an alarm
guards_config    Recipe section `guards`
handed_over      Reward functions that a Python program hands over: they have no file that a recipe could name
image_reward     ImageReward on transformers' BLIP modules
jpeg             JPEG compressibility and incompressibility
non_finite       Scores that are NaN or infinite: an error, left out or clamped, as each part says
normalise        Running mean and standard deviation of a reward over all images of a run
open_clip        open_clip's CLIP checkpoints as transformers' CLIP: config and keys
part_config      What the parts of a reward have in common
preprocess       Preprocessing of reward models as differentiable tensor code
pretrained       What the rewards on transformers' networks share: configs, weights, tokenizers, precision
python_file      The file of a reward function: imported here, or tried in a process of its own before a run starts
python_function  A function in a user's own file as a reward
reward           What a reward is
score            Scores of many images: in chunks, checked, those of one backbone from one forward of it
weighted_sum     The weighted sum of a recipe's reward parts, every part's own score kept
weights          Weight files of reward models: found, and read without running anything in them
"""
