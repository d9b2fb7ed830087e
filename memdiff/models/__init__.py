"""Policies: a denoiser, its conditioning and its decoder. The only room that imports diffusers and peft.

architectures     Written-down configurations of public models, so that tests and plans need no download
batches_that_fit  Batches without a graph that are made again in halves where memory runs out: rollouts
config            Recipe sections `model` and `adapter`
ddpm              Unconditional diffusers pipelines around a UNet2DModel: google/ddpm-celebahq-256
denoiser          A UNet under training: frozen with LoRA, or trained whole
finite_states     Whether the images of a chain stay finite, and what is wrong where they don't
folder            What a pipeline's folder holds, by its files alone: whether parts are missing
guidance          Classifier-free guidance, with gradients through both branches
latent            Text-to-image policies in a VAE's latent space: what Stable Diffusion and SDXL have in common
latent_files      Stable Diffusion and SDXL policies from pipeline folders, hub ids and single files
load              From a recipe's `model` to a policy: what kind of pipeline lies there
networks          Networks from folders and hub ids by diffusers' and transformers' own loading
options           How a model is run and trained, besides what it is
pixels            From decoded images to bytes
policy            What methods, the trainer and the sampler know of a model
precision         Precisions and their dtypes
quiet             Keeps the libraries' own bars and advice out of what a person reads
sampler_config    Recipe section `sampler`, and which of its steps add noise
scheduler         A pipeline's scheduler, whatever its class, as DDIM; and its noise schedule as plain numbers
sdxl              Stable Diffusion XL: two text encoders, a pooled embedding, and conditioning on sizes
single_file       Stable Diffusion 1.x and SDXL from a checkpoint in one file, as people share them
single_file_kinds  What a checkpoint in one file holds, by its tensors' names
sizes             How large a model's images are: as asked for, or as its config says
source            What is said, and what is not, where diffusers loads something
stable_diffusion  Stable Diffusion 1.x and 2.x: one CLIP text encoder, whose last hidden state conditions the UNet
text_encoders     Prompts to what a denoiser is conditioned on: encoded once, kept in host memory
unet_policy       What the policies around a diffusers UNet share: the chain's formulas on its predictions
variants          Which files of a network's weights are read: the plain ones, or those of a variant such as fp16
vae_decoder       From latents to images: the decoder half of a VAE, differentiable, recomputed part by part where asked
vae_files         VAEs from folders and hub ids: AutoencoderKL, and TAESD's AutoencoderTiny; what each of them runs in
lora/             LoRA adapters: put into a network, switched, mixed, saved, loaded
low_memory/       Layers that keep less for the backward: the same bits from fewer bytes
"""
