"""A run's numbers, images and recipe where people look for them: TensorBoard, Weights & Biases, trackio.

background     A logger in a thread of its own: the run never waits for a network
event_file     The files that TensorBoard reads, written without its package
logger         What a run asks of a logger, and the run as a logger knows it
loggers        All loggers of a run. One that fails is said once and then off
tensorboard    TensorBoard's event files in the run folder
trackio_run    trackio: a local dashboard, or a Space of the hub
wandb_run      Weights & Biases, online or offline
"""
