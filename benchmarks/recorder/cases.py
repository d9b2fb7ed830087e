"""The table of cases: a row is a name, what it goes through, and what differs from a base recipe. No torch.

Three steps, three images, two rounds: the last batch of most is a short one, and the second round sees what the first
has changed. Keys are those of recipes, dotted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.recorder.case import Case, Composition, Resuming, Sampling, Training

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
PROBABILITY = {"kind": "digits", "mode": "probability"}
LOG_PROBABILITY = {"kind": "digits", "digits": [5, 6, 7, 8, 9], "pool": "max", "mode": "log_probability"}
INK = {"kind": "python", "name": "ink", "file": str(RECIPES / "rewards" / "ink.py"), "differentiable": True}
JUDGE = {"kind": "digits", "classifier": "judge"}
COMMON: Mapping[str, Any] = {
    "sampler": {"steps": 3, "eta": 1.0},
    "method": {"kind": "reinforce"},
    "reward": [PROBABILITY],
    "optimizer": {"learning_rate": 1e-3},
    "evaluate": {"every": 0},
    "run": {"rounds": 2, "images_per_round": 3, "save_every": 100, "seed": 5},
}
TEXTS: Mapping[str, Any] = {
    "adapter": {"rank": 2},
    "sampler": {"steps": 3, "eta": 1.0, "guidance": 3.0, "timestep_spacing": "trailing"},
    "prompts": {"texts": ["zero", "seven", "a thin four"], "held_out": ["eight"]},
    "reward": [{**INK, "weight": 4}, LOG_PROBABILITY],
}
TINY: Mapping[str, Any] = {"reward": [INK]}
# Of folders that `models` makes: TINY_MODELS stands for where they lie.
BASES: Mapping[str, Mapping[str, Any]] = {
    "digits": COMMON | {"model": {"kind": "embedded", "name": "digits"}},
    "digits_text": COMMON | TEXTS | {"model": {"kind": "embedded", "name": "digits_text"}},
    "ddpm": COMMON | TINY | {"model": {"kind": "ddpm", "path": "TINY_MODELS/ddpm"}},
    "sd": COMMON | TEXTS | TINY | {"model": {"kind": "stable_diffusion", "path": "TINY_MODELS/sd"}},
    "sd_v": COMMON | TEXTS | TINY | {"model": {"kind": "stable_diffusion", "path": "TINY_MODELS/sd_v"}},
    "sdxl": COMMON | TEXTS | TINY | {"model": {"kind": "sdxl", "path": "TINY_MODELS/sdxl"}},
}

LORA = {"adapter": {"rank": 2, "alpha": 4, "convolutions": True}}
HALF = {"model.precision": "fp16"}
HELD_OUT = {"evaluate": {"every": 1, "images": 5, "rewards": [JUDGE]}}
DIRECT = {"reward": [LOG_PROBABILITY], "sampler.eta": 0.0}
DRAFT = {**DIRECT, "method": {"kind": "draft", "last_steps": "all"}}
DRAFT_1 = {**DIRECT, "method": {"kind": "draft", "last_steps": 1}}
ALIGNPROP = {**DIRECT, "method": {"kind": "alignprop"}}
REFL = {**DIRECT, "method": {"kind": "refl", "first_step": 1, "last_step": 2}}
TINY_DRAFT = {"sampler.eta": 0.0, "method": DRAFT["method"]}
TEXT_DRAFT = {"sampler.eta": 0.0, "method": {"kind": "draft", "last_steps": "all"}}
TEXT_REFL = {"sampler.eta": 0.0, "method": REFL["method"]}
SHARES = {
    "reward": [
        {"kind": "digits", "name": "low", "digits": [0, 1, 2], "mode": "share", "target_share": 0.4, "weight": 10},
        {"kind": "digits", "name": "nine", "digits": [9], "mode": "share", "target_share": 0.3, "weight": 10},
        {"kind": "digits", "name": "legible", "pool": "max", "mode": "probability", "weight": 3},
    ],
    "method.advantage": "center",
    "run.images_per_round": 5,
}
NORMALISED = {"reward": [{**LOG_PROBABILITY, "normalise": "running"}, {**INK, "weight": -2, "normalise": "running"}]}

REINFORCE = [
    Training("reinforce/whiten", "all of the network, replayed"),
    Training("reinforce/center", "centred advantages", {"method.advantage": "center"}),
    Training("reinforce/leave_one_out", "each against the others", {"method.advantage": "leave_one_out"}),
    Training(
        "reinforce/inner_updates_2", "ratio and clip",
        {"method.inner_updates": 2, "method.ratio_clip": 1e-3, "method.advantage_clip": 0.9},
    ),
    Training("reinforce/kl", "a frozen copy of all weights as base", {"method.kl_weight": 0.2}),
    Training("reinforce/predicted_image", "a baseline step by step", {"method.baseline": "predicted_image"}),
    Training(
        "reinforce/predicted_image_kl_shares", "baseline, slopes of shares, KL",
        {**SHARES, "method.baseline": "predicted_image", "method.kl_weight": 0.1, "memory.rewards": "idle_off"},
    ),
    Training("reinforce/balanced", "weights from the schedule", {"method.step_weights": "balanced"}),
    Training("reinforce/given_weights", "a step left out", {"method.step_weights": [1.0, 0.0, 2.0]}),
    Training("reinforce/sum", "log-prob summed", {"method.log_prob_reduction": "sum", "optimizer.clip_norm": 0}),
    Training("reinforce/sigma_floor", "the last step has a density", {"sampler.sigma_floor": 0.1, "sampler.eta": 0.5}),
    Training("reinforce/micro_batch_4", "6 pairs in 4 and 2", {"memory.micro_batch": 4}),
    Training("reinforce/rollout_batch_2", "3 images in 2 and 1", {"memory.rollout_batch": 2, "memory.micro_batch": 1}),
    Training("reinforce/shares", "targets for shares of yes", SHARES),
    Training("reinforce/normalised", "running statistics, python reward", NORMALISED),
    Training(
        "reinforce/jpeg", "a reward without a network, chunks",
        {"reward": [{"kind": "jpeg", "chunk": 2}, PROBABILITY], **HELD_OUT},
    ),
    Training("reinforce/trajectory_host", "stored states on the host", {"memory.trajectory": "host"}),
    Training("reinforce/accumulators_host", "gradients on the host", {"memory.accumulators": "host"}),
    Training("reinforce/rewards_cpu", "rewards on the host", {"memory.rewards": "cpu", **HELD_OUT}),
    Training("reinforce/rewards_idle_off", "rewards leave", {"memory.rewards": "idle_off", **HELD_OUT}),
    Training("reinforce/idle_parts_leave", "frozen weights leave", {"memory.idle_parts": "leave", **LORA, **HELD_OUT}),
    Training("reinforce/offload", "DeepSpeed's CPU Adam", {"memory.offload_optimizer": True}),
    Training("reinforce/bits_8", "bitsandbytes", {"optimizer.bits": 8}),
    Training("reinforce/bits_8_offload", "both", {"optimizer.bits": 8, "memory.offload_optimizer": True}),
    Training("reinforce/blocks", "blocks recomputed", {"memory.activation_checkpointing": "blocks"}),
    Training("reinforce/trained_modules", "a part of the network", {"trained_modules": ["mid_block", "conv_out"]}),
    Training(
        "reinforce/ema", "average, warm-up, evaluations of the average, best model",
        {"optimizer.ema": 0.7, "optimizer.warmup_updates": 3, **HELD_OUT},
    ),
    Training("reinforce/one_pass", "eligibilities image by image", {"memory.one_pass": True}),
    Training(
        "reinforce/one_pass_inner_updates_2", "eligibilities, then a replay",
        {"memory.one_pass": True, "method.inner_updates": 2, "method.ratio_clip": 1e-3},
    ),
    Training("reinforce/lora", "adapter on attention and convolutions", LORA),
    Training("reinforce/lora_one_pass", "weights of each image's own, 2 and 1 rows",
             {**LORA, "memory.one_pass": True, "memory.micro_batch": 2}),
    Training(
        "reinforce/lora_one_pass_inner_updates_2", "then a replay in the same groups",
        {**LORA, "memory.one_pass": True, "memory.micro_batch": 2, "method.inner_updates": 2,
         "method.ratio_clip": 1e-3},
    ),
    Training(
        "reinforce/lora_one_pass_accumulators_host", "eligibilities on the host",
        {**LORA, "memory.one_pass": True, "memory.micro_batch": 2, "memory.accumulators": "host"},
    ),
    Training("reinforce/lora_window", "adapter in some steps", {"adapter": {"rank": 2, "steps": [1, 3]}}),
    Training("reinforce/lora_window_one_pass", "the same in one pass",
             {"adapter": {"rank": 2, "steps": [0, 1]}, "memory.one_pass": True}),
    Training("reinforce/lora_kl", "adapters off as base", {**LORA, "method.kl_weight": 0.2}),
    Training("reinforce/lora_ema_8bit", "average of 8-bit AdamW", {**LORA, "optimizer.bits": 8, "optimizer.ema": 0.8}),
    Training("reinforce/text_prompt_memory", "by prompt, over earlier rounds",
             {"method.per_prompt": True, "method.prompt_memory": 2, "prompts.images_per_prompt": 2,
              "run.images_per_round": 4}, "digits_text"),
    Training("reinforce/text_by_prompt", "by prompt, leave one out",
             {"method.per_prompt": True, "method.prompt_memory": 0, "method.advantage": "leave_one_out",
              "prompts.images_per_prompt": 2, "run.images_per_round": 4}, "digits_text"),
    Training("reinforce/text_passes_2", "guidance in two calls", {"memory.guidance_passes": 2}, "digits_text"),
    Training("reinforce/text_one_pass", "guided rows with weights of their own",
             {"memory.one_pass": True, "memory.micro_batch": 2}, "digits_text"),
    Training("reinforce/text_kl_idle", "base, decoder and UNet leave",
             {"method.kl_weight": 0.1, "memory.idle_parts": "leave", **HELD_OUT}, "digits_text"),
]  # fmt: skip

REWARD_GRADIENTS = [
    Training("draft/last_1", "one step", {**DRAFT_1, **LORA}),
    Training("draft/last_2", "some steps", {**DRAFT, "method.last_steps": 2, **LORA}),
    Training("draft/all", "whole chain, all of the network", DRAFT),
    Training("draft/lora", "whole chain, adapter", {**DRAFT, **LORA}),
    Training("draft/micro_batch_2", "2 images and 1, filled up", {**DRAFT, **LORA, "memory.micro_batch": 2,
                                                                 "memory.rollout_batch": 2}),
    Training("draft/kept_1", "the last step's graph kept", {**DRAFT, **LORA, "memory.kept_steps": 1}),
    Training("draft/kept_all", "every graph kept", {**DRAFT, **LORA, "memory.kept_steps": 3}),
    Training("draft/blocks", "blocks recomputed", {**DRAFT, **LORA, "memory.activation_checkpointing": "blocks"}),
    Training("draft/costate_clip", "d loss / d x bounded", {**DRAFT, **LORA, "method.costate_clip": 1e-3}),
    Training("draft/base_distance", "adapters off as base", {**DRAFT, **LORA, "method.base_distance": 0.5}),
    Training("draft/base_distance_full", "a frozen copy as base", {**DRAFT, "method.base_distance": 0.5}),
    Training("draft/straight_through", "clipped pixels as if unclipped",
             {**DRAFT, **LORA, "sampler.clip_gradient": "straight_through"}),
    Training("draft/target", "images that have reached it left alone", {**DRAFT, **LORA, "method.target": -3.0}),
    Training("draft/eta_1", "noise in the chain", {**DRAFT, **LORA, "sampler.eta": 1.0}),
    Training("draft/window", "adapter in some of the differentiated steps",
             {**DRAFT, "adapter": {"rank": 2, "steps": [0, 2]}}),
    Training("draft/normalised", "a first round for the statistics", {**DRAFT, **LORA, **NORMALISED, **HELD_OUT}),
    Training("draft/on_host", "states, gradients, optimizer on the host",
             {**DRAFT, **LORA, "memory.trajectory": "host", "memory.accumulators": "host",
              "memory.offload_optimizer": True, "memory.rewards": "idle_off"}),
    Training("draft/noise_samples", "DRaFT-LV", {**DRAFT_1, **LORA, "method.noise_samples": 2}),
    Training("draft/text", "through the decoder", TEXT_DRAFT, "digits_text"),
    Training("draft/text_noise_samples", "DRaFT-LV, kept", {**TEXT_DRAFT, "method.last_steps": 1,
             "method.noise_samples": 2, "memory.kept_steps": 1}, "digits_text"),
    Training("draft/text_vae_none", "decoder's graph kept", {**TEXT_DRAFT, "memory.vae_checkpointing": "none",
             "memory.decode_batch": 2}, "digits_text"),
    Training("draft/text_vae_blocks", "decoder's blocks recomputed",
             {**TEXT_DRAFT, "memory.vae_checkpointing": "blocks", "memory.decode_batch": 1}, "digits_text"),
    Training("draft/text_passes_2", "guidance in two calls", {**TEXT_DRAFT, "memory.guidance_passes": 2},
             "digits_text"),
    Training("draft/text_feed_forwards", "feed-forwards recomputed, kept",
             {**TEXT_DRAFT, "memory.activation_checkpointing": "feed_forwards", "memory.kept_steps": 2}, "digits_text"),
    Training("draft/text_idle", "what is idle leaves", {**TEXT_DRAFT, "memory.idle_parts": "leave",
             "memory.rewards": "idle_off", **HELD_OUT}, "digits_text"),
    Training("alignprop/random", "K of each image", {**ALIGNPROP, **LORA}),
    Training("alignprop/one_draw", "K of a round", {**ALIGNPROP, "method.one_draw_per_batch": True}),
    Training("alignprop/fixed_kept", "K fixed, one graph kept",
             {**ALIGNPROP, **LORA, "method.truncation": "fixed", "method.last_steps": 2, "memory.kept_steps": 1}),
    Training("alignprop/text", "K of each image, micro-batches of 2",
             {**TEXT_DRAFT, "method": {"kind": "alignprop"}, "memory.micro_batch": 2}, "digits_text"),
    Training("refl/digits", "one late step", REFL),
    Training("refl/kept", "its graph kept, adapter", {**REFL, **LORA, "memory.kept_steps": 1}),
    Training("refl/text", "through the decoder, micro-batches of 2",
             {**TEXT_REFL, "memory.micro_batch": 2, **HELD_OUT}, "digits_text"),
]  # fmt: skip

OTHER_MODELS = [
    Training("ddpm/reinforce", "a pipeline folder, linear schedule, clipped", {}, "ddpm"),
    Training("ddpm/draft", "the same differentiated", TINY_DRAFT, "ddpm"),
    Training("sd/reinforce", "Stable Diffusion, adapter", {}, "sd"),
    Training("sd/reinforce_full", "all of its UNet", {"adapter": None, "sampler.guidance": 1.0}, "sd"),
    Training("sd/draft", "through its decoder", TEXT_DRAFT, "sd"),
    Training("sd/draft_v", "v-prediction", TEXT_DRAFT, "sd_v"),
    Training("sd/refl_negative", "a negative prompt", {**TEXT_REFL, "sampler.negative_prompt": "one"}, "sd"),
    Training("sdxl/reinforce", "two encoders, size embeddings", {}, "sdxl"),
    Training("sdxl/draft", "through a decoder", TEXT_DRAFT, "sdxl"),
    Training("sdxl/alignprop_passes_2", "guidance in two calls",
             {**TEXT_DRAFT, "method": {"kind": "alignprop"}, "memory.guidance_passes": 2}, "sdxl"),
]  # fmt: skip

# On the small models: convolutions in fp16 are slow on CPUs without instructions for it.
IN_HALF = [
    Training("half/reinforce", "fp32 masters, loss scale", HALF, "ddpm"),
    Training("half/reinforce_lora", "adapter, average", {**HALF, **LORA, "optimizer.ema": 0.7}, "ddpm"),
    Training("half/reinforce_one_pass", "eligibilities", {**HALF, **LORA, "memory.one_pass": True}, "ddpm"),
    Training("half/reinforce_kl_inner_updates_2", "base, ratio",
             {**HALF, **LORA, "method.kl_weight": 0.2, "method.inner_updates": 2, "method.ratio_clip": 1e-2}, "ddpm"),
    Training("half/reinforce_kl_full", "a frozen copy as base", {**HALF, "method.kl_weight": 0.2}, "ddpm"),
    Training("half/reinforce_offload_8bit", "optimizer on the host",
             {**HALF, "memory.offload_optimizer": True, "optimizer.bits": 8}, "ddpm"),
    Training("half/reinforce_offload", "CPU Adam", {**HALF, "memory.offload_optimizer": True}, "ddpm"),
    Training("half/draft", "states in fp32, a graph kept",
             {**HALF, **TINY_DRAFT, **LORA, "memory.kept_steps": 1}, "ddpm"),
    Training("half/draft_offload", "CPU Adam, blocks", {**HALF, **TINY_DRAFT, "memory.offload_optimizer": True,
                                                      "memory.activation_checkpointing": "blocks"}, "ddpm"),
    Training("half/sd_reinforce", "guided", HALF, "sd"),
    Training("half/sd_draft", "two networks in one scale", {**HALF, **TEXT_DRAFT}, "sd"),
    Training("half/sd_alignprop", "random K", {**HALF, **TEXT_DRAFT, "method": {"kind": "alignprop"}}, "sd"),
    Training("half/sd_refl", "one step", {**HALF, **TEXT_REFL}, "sd"),
    Training("half/sdxl_draft", "a VAE that is upcast", {**HALF, **TEXT_DRAFT}, "sdxl"),
    Training("half/digits", "the embedded model, evaluations",
             {**HALF, **LORA, **HELD_OUT, "sampler.steps": 2, "run.images_per_round": 2, "run.rounds": 1,
              "evaluate.images": 2}),
]  # fmt: skip

ON_TWO_RANKS = [
    Training("ranks_2/reinforce", "2 images and 1, evaluation", {**HELD_OUT}, ranks=2),
    Training("ranks_2/reinforce_lora_one_pass", "eligibilities", {**LORA, "memory.one_pass": True}, ranks=2),
    Training("ranks_2/reinforce_shares_ema", "shares over all ranks, average, 8 bits",
             {**SHARES, "optimizer.ema": 0.7, "optimizer.bits": 8, **HELD_OUT}, ranks=2),
    Training("ranks_2/reinforce_kl_baseline", "base and baseline",
             {"method.kl_weight": 0.2, "method.baseline": "predicted_image"}, ranks=2),
    Training("ranks_2/reinforce_offload", "CPU Adam", {"memory.offload_optimizer": True}, ranks=2),
    Training("ranks_2/text_prompt_memory", "by prompt over ranks",
             {"method.per_prompt": True, "method.prompt_memory": 2, "prompts.images_per_prompt": 2,
              "run.images_per_round": 4, **HELD_OUT}, "digits_text", ranks=2),
    Training("ranks_2/draft", "whole chain, normalised", {**DRAFT, **LORA, **NORMALISED}, ranks=2),
    Training("ranks_2/alignprop", "other depths on other ranks", {**ALIGNPROP, **LORA}, ranks=2),
    Training("ranks_2/text_refl", "one step", TEXT_REFL, "digits_text", ranks=2),
    Training("ranks_2/half_reinforce", "loss scale over ranks", HALF, "ddpm", ranks=2),
    Training("ranks_2/half_draft", "the same differentiated", {**HALF, **TINY_DRAFT, **LORA}, "ddpm", ranks=2),
]  # fmt: skip

TEXT_ROUND = {"sampler.steps": 5, "run.images_per_round": 6, "evaluate": {"every": 1, "images": 4, "rewards": [JUDGE]}}
ROUND = {"sampler.steps": 5, "run.images_per_round": 6, "evaluate": {"every": 1, "images": 4, "rewards": [JUDGE]}}
LATENT = {**TEXT_ROUND, **TEXT_DRAFT, "reward": [LOG_PROBABILITY]}
PIECES = {"micro_batch": 3, "rollout_batch": 3}
COMPOSITIONS = [
    Composition("compose/reinforce", "everything stays", PIECES, ROUND),
    Composition("compose/reinforce_rewards_off", "held-out rewards, rewards off",
                {**PIECES, "rewards": "idle_off"}, ROUND),
    Composition("compose/reinforce_lora_rewards_off", "held-out rewards, UNet and rewards off",
                {**PIECES, "rewards": "idle_off", "idle_unet": "host"}, {**ROUND, **LORA}),
    Composition("compose/reinforce_host", "states and gradients on the host",
                {**PIECES, "trajectory": "host", "accumulators": "host"}, ROUND),
    Composition("compose/one_pass", "one pass, all of the network", {**PIECES, "one_pass": True}, ROUND),
    Composition("compose/one_pass_lora_offload", "one pass, optimizer and gradients on the host",
                {**PIECES, "one_pass": True, "accumulators": "host", "offload_optimizer": True},
                {**ROUND, **LORA}),
    Composition("compose/one_pass_lora_offload_alone", "one pass, optimizer on the host",
                {**PIECES, "one_pass": True, "offload_optimizer": True}, {**ROUND, **LORA}),
    Composition("compose/one_pass_rewards_off", "one pass, rewards and UNet off",
                {**PIECES, "one_pass": True, "rewards": "idle_off", "idle_unet": "host"},
                {**ROUND, **LORA}),
    Composition("compose/text_unet_off", "the UNet off, the decoder stays",
                {**PIECES, "idle_unet": "host"}, LATENT, "digits_text"),
    Composition("compose/text_decoder_off", "the decoder off, the UNet stays",
                {**PIECES, "idle_decoder": "host"}, LATENT, "digits_text"),
    Composition("compose/text_all_off", "UNet, decoder and rewards off",
                {**PIECES, "idle_unet": "host", "idle_decoder": "host", "rewards": "idle_off"},
                LATENT, "digits_text"),
    Composition("compose/text_reinforce_decoder_off", "REINFORCE, decoder and rewards off",
                {**PIECES, "idle_decoder": "host", "rewards": "idle_off"},
                {**TEXT_ROUND, "reward": [LOG_PROBABILITY]}, "digits_text"),
    Composition("compose/text_one_pass_decoder_off", "one pass, decoder off, offload",
                {**PIECES, "one_pass": True, "idle_decoder": "host", "offload_optimizer": True},
                {**TEXT_ROUND, "reward": [LOG_PROBABILITY]}, "digits_text"),
    Composition("compose/half_text_decoder_off", "fp16, decoder off, kept steps",
                {**PIECES, "idle_decoder": "host", "kept_steps": 2}, LATENT, "digits_text", "fp16"),
    Composition("compose/half_reinforce_ema", "fp16, an average of the weights, rewards off",
                {**PIECES, "rewards": "idle_off"}, {**ROUND, "optimizer.ema": 0.9}, precision="fp16"),
    Composition("compose/half_one_pass_lora_offload", "fp16, one pass, offload",
                {**PIECES, "one_pass": True, "offload_optimizer": True}, {**ROUND, **LORA}, precision="fp16"),
]  # fmt: skip

FEW = ("--num-images", "3", "--batch-size", "2", "--steps", "3")
ADAPTER = "KEPT/digits_text_lora"
OF_OLD = [
    Resuming("kept/resume", "a checkpoint of an older commit: normalised reward, average, 8 bits", "digits_run", 4),
    Resuming("kept/resume_text", "another: by prompt, memory of prompts", "digits_text_run", 3),
    Sampling("kept/sample_run", "its saved adapter", ("KEPT/digits_run", *FEW)),
    Sampling("kept/sample_ddpm", "a pipeline folder of an older commit", ("KEPT/ddpm", *FEW)),
    Sampling("kept/sample_lora", "an adapter in diffusers' file, mixed in",
             ("digits_text", *FEW, "--prompt", "seven", "--mix", f"{ADAPTER}=0.5")),
    Sampling("kept/sample_lora_scaled", "in some steps, scaled",
             ("digits_text", *FEW, "--prompt", "four", "--mix", f"{ADAPTER}=1", "--lora-scale", "1.5",
              "--adapter-steps", "1:3")),
    Sampling("sample/digits", "the embedded model", ("digits", *FEW)),
    Sampling("sample/digits_eta_0", "without noise", ("digits", *FEW, "--eta", "0", "--seed", "3")),
    Sampling("sample/digits_text", "with guidance", ("digits_text", *FEW, "--prompt", "seven")),
    Sampling("sample/digits_text_unguided", "without", ("digits_text", *FEW, "--prompt", "two", "--guidance", "1")),
]  # fmt: skip

CASES: list[Case] = [
    *REINFORCE, *REWARD_GRADIENTS, *OTHER_MODELS, *IN_HALF, *ON_TWO_RANKS, *COMPOSITIONS, *OF_OLD,
]  # fmt: skip
PLANNED = sorted(file.stem for file in RECIPES.glob("*.yaml"))
PLANNED_BY_DEFAULT = ("digits_reinforce", "digits_draft")  # half a minute; the others are asked for
