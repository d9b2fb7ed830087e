"""The mathematics of one denoising chain. Tensors in, tensors out.

advantage   Advantages from the rewards of all ranks
ddim        One DDIM step and its density, in fp32 whatever the network runs in
noise       Counter-based noise: a function of (seed, stream, round, image, step), whatever device
schedule    The steps of a sampling chain: which timesteps, how noisy before and after, the std of each step
surrogate   The slope of PPO's clipped surrogate, by which DDPO weighs log-probs
trajectory  What a rollout leaves: every x_t of every image once, in the dtype the network reads
"""
