"""The mathematics of one denoising chain. Tensors in, tensors out.

advantage   Advantages from the rewards of all ranks
ddim        One DDIM step (Song et al. 2021, equation 12) and its density, in fp32 whatever the network runs in
noise       Counter-based noise: a function of (seed, stream, round, image, step), whatever device, rank or micro-batch asks
schedule    The steps of a sampling chain: which timesteps, how noisy before and after, how random the step
surrogate   The slope of PPO's clipped surrogate, by which DDPO weighs log-probs (Schulman et al. 2017; Black et al. 2023)
trajectory  What a rollout leaves: every x_t of every image once, in the dtype the network reads
"""
