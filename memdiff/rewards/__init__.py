"""Rewards: images_BCHW in [0, 1] and prompts -> rewards_B. One file a family."""
