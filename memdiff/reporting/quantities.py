"""What the numbers of a row are called on a page, and what one should see in their curve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A column of metrics.jsonl: its key, a heading, what stands at the axis, words below the plot."""

    key: str
    heading: str
    axis: str
    caption: str
    log_base: int | None = None


HEALTH = (
    Quantity(
        "grad_norm", "Gradient norm", "gradient norm",
        "Length of the whole gradient before clipping. Should stay within an order of magnitude; a steady climb "
        "announces divergence, a spike one bad round.", 10,
    ),
    Quantity(
        "loss_scale", "Loss scale", "loss scale",
        "The power of two that keeps fp16 gradients in range. Should move by small factors; a fall towards 1 means "
        "gradients that overflow.", 2,
    ),
    Quantity(
        "skipped", "Skipped updates", "updates",
        "Updates that were not applied because a gradient was not finite. Should be zero throughout.",
    ),
    Quantity(
        "pieces_redone", "Pieces made again", "pieces since the start",
        "Forward and backward passes whose fp16 gradients overflowed, made again at a lower scale. A few are normal.",
    ),
    Quantity(
        "advantage_std", "Spread of the advantages", "standard deviation",
        "How far the images' advantages lie apart. Near zero there is nothing to learn from: all images are rewarded "
        "alike.",
    ),
    Quantity(
        "clip_fraction", "Share of ratios clipped", "share",
        "Share of importance ratios that the clip cut off. Should be small; near one, updates are too large. Zero "
        "where a round has one update.",
    ),
    Quantity(
        "approx_kl", "KL to the policy that sampled", "KL (nats)",
        "Approximate divergence of the updated policy from the one that sampled. Should stay small and flat. Zero "
        "where a round has one update.",
    ),
    Quantity(
        "kl_to_base", "KL to the base model", "KL (nats) a step",
        "How far the policy has gone from the model that it began with. Should level off; a steady climb is paid for "
        "in images that look less like the base's.",
    ),
    Quantity(
        "log_prob_mean", "Log-probability of a step", "nats a dimension",
        "Mean log-probability of a step of the chain. Drifts slowly; a jump means a changed policy or broken replay.",
    ),
    Quantity(
        "log_prob_sum", "Log-probability of a chain", "nats",
        "Log-probability of a whole chain, summed over its steps. Same reading as the mean.",
    ),
    Quantity(
        "lr", "Learning rate", "learning rate",
        "The optimizer's learning rate: shows warm-up and decay as configured.", 10,
    ),
)  # fmt: skip
OF_METHODS = (
    Quantity(
        "loss", "Loss", "loss",
        "What the gradient is taken of: minus the reward, or what it lacks of its target. Should fall.",
    ),
    Quantity(
        "reward_queries", "Images scored", "images a round",
        "How often a round asks the reward for the score of an image.",
    ),
    Quantity(
        "last_steps_mean", "Steps with a gradient", "steps",
        "How many of a chain's last steps the reward's gradient went through, in the mean over the images.",
    ),
    Quantity(
        "base_distance", "Distance to the base model", "distance",
        "How far the predictions of the trained and of the base model lie apart, over images and steps.",
    ),
    Quantity("value_loss", "Loss of the value function", "loss", "How well it foretells the reward. Should fall."),
    Quantity(
        "ipm", "Fake against real, by the critic", "difference",
        "The critic's mean on sampled images less that on real ones: what the policy is trained to lower.",
    ),
    Quantity("critic_fake", "Critic on sampled images", "critic", "Its mean over the sampled images."),
    Quantity("critic_real", "Critic on real images", "critic", "Its mean over the real images."),
    Quantity("critic_grad_norm", "Gradient norm of the critic", "gradient norm", "Before its optimizer's step.", 10),
    Quantity(
        "value_grad_norm", "Gradient norm of the value function", "gradient norm", "Before its optimizer's step.", 10
    ),
    Quantity(
        "kl", "KL to the policy that sampled", "KL (nats)",
        "Of a step, by the last update of the round that was measured.",
    ),
    Quantity(
        "skipped_minibatches", "Updates left out", "updates", "Of a round, because the policy had gone far enough."
    ),
    Quantity(
        "rate", "Learning rate factor", "factor",
        "What the learning rate is multiplied by: halved where the KL goes beyond its limit.",
    ),
    Quantity("advantage_mean", "Mean of the advantages", "advantage", "Should stay near zero."),
    Quantity("log_prob", "Log-probability of a step", "nats", "Its mean over images and steps. Drifts slowly."),
)  # fmt: skip
DIVERSITY = (
    Quantity(
        "diversity_pixel", "Difference of two images, in pixels", "difference of a pixel",
        "Root mean square difference of a pixel (0 to 1) between two images. Should stay near its start; a steady fall "
        "means images that grow alike.",
    ),
    Quantity(
        "diversity_feature", "Difference of two images, in features", "distance",
        "Mean distance between two images in the features of a reward's network. Should stay near its start.",
    ),
)  # fmt: skip
KNOWN = {each.key for each in (*HEALTH, *OF_METHODS, *DIVERSITY)}


def unknown(key: str) -> Quantity:
    """A column that this page has no words for: its key is its heading, in words."""
    words = key.removeprefix("evaluate/").replace("_", " ").strip()
    heading = (f"{words[:1].upper()}{words[1:]}" or key) + (", fixed noise" if key.startswith("evaluate/") else "")
    return Quantity(key, heading, "value (as reported)", "A number of the method's; look for jumps and slow drifts.")
