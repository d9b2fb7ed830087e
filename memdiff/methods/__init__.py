"""Methods: what is sampled, scored and differentiated in a round. One algorithm per file.

advantages            From a round's rewards to REINFORCE's advantages, as a recipe's `method` says
alignprop             AlignProp: the reward's gradient through a random number of last steps
build                 From a recipe's `method` to the algorithm, with the networks that it trains beside the model
config                Recipe section `method`: one section an algorithm
critic                SFT-PG's critic: an image to its cost, high on what the model makes and low on real images
critic_phase          What SFT-PG's critic and value function learn of a round
diagnostics           Diagnostics of a reward gradient's way back through the chain
draft                 DRaFT: the reward's gradient through the last K steps of the chain
drawn_noise           The noise of a rollout's steps, drawn once more: what a replay in half precision scores
eligibility           Each image's eligibility, taken while it is sampled: one forward of the network a step
experience            What a round's images are before and after they are made
learner               A small network that a method trains beside the model: the same on every rank
learners_config       Recipe sections of the networks that a method trains beside the model, and their bytes
method                What the training loop knows of an algorithm
micro_batches         Micro-batches of one shape, and their retry in halves where memory runs out
pair_diagnostics      Diagnostics of REINFORCE, summed piece by piece
predicted_baseline    A baseline of each image and step: the reward of the image that the model predicts there
prompt_rewards        Advantages against a prompt's own rewards, remembered over rounds
real_images           The images that a model's are to be like: read once, checked
refl                  ReFL: one late step predicts the image at once
reinforce             REINFORCE over the whole denoising chain, with DDPO's ratio and DPOK's KL
reinforce_config      Recipe section `method` of REINFORCE
reinforce_experience  What REINFORCE knows of a round between sampling it and its last update
reinforce_one_pass    REINFORCE whose gradient is taken while the images are sampled
reinforce_scores      From a round's images to REINFORCE's advantages over all ranks, with a baseline by step
reward_gradient       What the methods that differentiate the reward itself have in common: a round
reward_gradient_config  Recipe section `method` of those that differentiate the reward itself: DRaFT, AlignProp, ReFL
sampling              A round's images, from noise to x_0, without a graph
scoring               From x_0 to the loss and back: decoder and rewards as pieces, one graph alive at a time
sft_pg                SFT-PG: a chain of few steps is fine-tuned against real images by policy gradient
sft_pg_config         Recipe section `method` of SFT-PG, and where its real images come from
sweep                 The reverse sweep: the exact gradient of a loss on x_0 through the last steps of a chain
value_baseline        REINFORCE's learnt baseline: a value function of a state and its step
value_function        A value function: a state of the chain to what its image is expected to be worth, v(x_t, t)
workload              What a round of a method comes to, for the planner: each method's section answers for itself
"""
