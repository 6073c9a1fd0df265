"""Train the lab's latent diffusion model from scratch, as Stable Diffusion was, in miniature.

First an autoencoder learns to compress an image to a latent with a quarter of its side. Then a
U-Net learns to predict the noise that was added to a latent, given the caption; with it, unlike
Stable Diffusion's, the text encoder learns, and its finest self-attention has an auxiliary loss
(see `attention`). Most scenes are cut to half of their side: the U-Net has no position embeddings,
its size is free, and a quarter of the area costs a quarter of the time. The weights kept are their
moving average.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.lab.pretrain.sd import model as sd_model
from ovss.lab.pretrain.sd.attention import attending, supervised
from ovss.lab.pretrain.sd.measure import measure
from ovss.lab.pretrain.sd.recipe import Recipe, make_batch
from ovss.lab.pretrain.trainer import Split, ZooTrainer
from ovss.lab.scenes import render
from ovss.training.card import Gate
from ovss.training.curriculum import Batch, Batches
from ovss.training.optim import ema_update

KL = 1e-6  # weight of the autoencoder's prior: next to nothing, as in Stable Diffusion
CAPTIONS = 6000  # read by the tokenizer


class Latent(nn.Module):
    """All that learns, and the moving average of the part that denoises."""

    scale: Tensor

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.vae: Any = sd_model.make_vae().to(memory_format=torch.channels_last)
        unet = sd_model.make_unet().to(memory_format=torch.channels_last)
        text = sd_model.make_text_encoder(tokenizer)
        self.denoiser = nn.ModuleDict({"unet": unet, "text": text})
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))  # 1 / standard deviation of the latents
        self.scheduler = sd_model.make_scheduler()

    def image_loss(self, pixels: Tensor) -> Tensor:
        """Absolute error of the reconstruction of [B, 3, S, S], and the prior."""
        posterior = self.vae.encode(pixels).latent_dist
        error = self.vae.decode(posterior.sample()).sample - pixels  # [B, 3, S, S]
        return (error.abs().sum() + KL * posterior.kl().sum()) / pixels.numel()

    def noise_loss(self, pixels: Tensor, tokens: Tensor, attend: float) -> Tensor:
        """Squared error of the noise predicted in the latents of [B, 3, S, S] at random times, and
        `attend` times the auxiliary loss of the finest self-attention (see `attention`)."""
        latents = self.latents(pixels)  # [B, 4, h, w]
        times = self.scheduler.config.num_train_timesteps
        time = torch.randint(times, (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, time)
        words = self.denoiser["text"](tokens).last_hidden_state  # [B, T, C]
        unet = self.denoiser["unet"]
        signal = self.scheduler.alphas_cumprod.to(latents)[time]  # [B]: noise alone asks little
        with attending(supervised(unet) if attend else [], latents, signal) as errors:
            predicted = unet(noisy, time, encoder_hidden_states=words).sample
        loss = F.mse_loss(predicted.float(), noise)
        return loss + attend * torch.stack(errors).mean() if attend else loss

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """The autoencoder's mean, scaled to variance one: [B, 4, S/4, S/4]."""
        return self.vae.encode(pixels).latent_dist.mean.float() * self.scale


class SdTrainer(ZooTrainer[Recipe]):
    """The autoencoder, then the U-Net with its text encoder."""

    name = "sd"
    what = "a latent diffusion model of diffusers, trained from scratch on the lab world"
    default_recipe = Recipe()
    weights = "unet/diffusion_pytorch_model.safetensors"
    # The plain kernel's memory traffic is four times slower at 32 x 32 positions.
    cpu_attention = (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    )
    gates = (
        Gate("psnr", "reconstructs images, dB", 20.0),
        Gate(
            "attention_in_mask",
            "of an object's self-attention the part inside the object, %: what leaves it smears "
            "the scores that CLIPer's compensation propagates",
            90.0,
        ),
    )
    model: Latent

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        captions = (render("pretrain", i, 64).caption for i in range(CAPTIONS))
        self.tokenizer = sd_model.make_tokenizer(captions)
        self.optimise(Latent(self.tokenizer))

    def batches(self) -> Batches[Any]:
        """Pixels and tokens of every step."""
        make = partial(make_batch, self.tokenizer, self.recipe.unprompted)
        return Batches(self.recipe, make)

    def before_step(self, batch: Batch) -> None:
        """Scale the latents to variance one where a stage of the U-Net begins."""
        stage, within, _ = self.recipe.at(self.done)
        if stage.learns == "noise" and within == 0:
            self.model.scale.mul_(1 / self.model.latents(unit(batch[0])).std())

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """The loss of the part that learns in this stage."""
        images = unit(pixels)
        with self.precision():
            if self.recipe.at(self.done).stage.learns == "image":
                return self.model.image_loss(images)
            return self.model.noise_loss(images, tokens, self.recipe.attend)

    def after_step(self) -> None:
        """Update the moving average of the denoiser, in longer steps at the beginning."""
        if self.recipe.at(self.done).stage.learns == "noise":
            done = self.done - sum(s.steps for s in self.recipe.stages if s.learns == "image")
            momentum = min(self.recipe.average, (1 + done) / (10 + done))
            parameters = self.model.average.parameters(), self.model.denoiser.parameters()
            ema_update(*parameters, momentum)

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def write(self, folder: Path) -> None:
        """Write autoencoder, averaged U-Net and text encoder, tokenizer and scheduler."""
        self.model.vae.register_to_config(scaling_factor=float(self.model.scale))
        sd_model.save_parts(folder, dict(self.shipped.items()), self.tokenizer)

    def load(self, folder: Path) -> DiffusionBackbone:
        """The backbone in `folder`."""
        return DiffusionBackbone.load(folder, device=self.device)

    @property
    def shipped(self) -> nn.ModuleDict:
        """The parts by their folders."""
        average = self.model.average
        parts = {"vae": self.model.vae, "unet": average["unet"], "text_encoder": average["text"]}
        return nn.ModuleDict(parts)


def unit(pixels: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
