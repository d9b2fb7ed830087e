"""Methods: what is sampled, scored and differentiated in a round. One algorithm per file.

advantages            From a round's rewards to REINFORCE's advantages, as a recipe's `method` says
alignprop             AlignProp: the reward's gradient through a random number of last steps (Prabhudesai et al. 2023, section 4.2)
build                 From a recipe's `method` to the algorithm
config                Recipe section `method`
diagnostics           Diagnostics of a reward gradient's way back through the chain, kept on the device until the round's row is written
draft                 DRaFT: the reward's gradient through the last K steps of the chain (Clark et al. 2023, section 4)
eligibility           Each image's eligibility, taken while it is sampled: one forward of the network a step, not two
experience            What a round's images are before and after they are made
method                What the training loop knows of an algorithm
micro_batches         Micro-batches of one shape, and their retry in halves where memory runs out. The smaller size is kept
pair_diagnostics      Diagnostics of REINFORCE, summed piece by piece
predicted_baseline    A baseline of each image and step: the reward of the image that the model predicts there
prompt_rewards        Advantages against a prompt's own rewards, remembered over rounds (Black et al. 2023, section 4.3, as in its code)
refl                  ReFL: one late step predicts the image at once, and the reward's gradient goes through that step alone (Xu et al. 2023, algorithm 1: ImageReward)
reinforce             REINFORCE over the whole denoising chain (Williams 1992; as DDPO's importance-sampled form, Black et al. 2023)
reinforce_experience  What REINFORCE knows of a round between sampling it and its last update
reinforce_one_pass    REINFORCE whose gradient is taken while the images are sampled: one forward of the network a step, not two
reward_gradient       What the methods that differentiate the reward itself have in common: a round, one micro-batch after the other
sampling              A round's images, from noise to x_0, without a graph
scoring               From x_0 to the loss and back: decoder and rewards as pieces, one graph alive at a time
sweep                 The reverse sweep: the exact gradient of a loss on x_0 through the last steps of a chain, flat in their number
workload              What a round of a method comes to, for the planner: each method's section answers for itself
"""
