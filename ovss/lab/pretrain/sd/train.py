"""Train the lab's latent diffusion model from scratch, as Stable Diffusion was, in miniature.

First an autoencoder learns to squeeze an image into a latent with a quarter of its side. Then a
U-Net learns to tell the noise that was added to a latent, given the caption; with it, unlike Stable
Diffusion's, the text encoder learns, and its finest self-attention is asked to tell a position's
latent from the others' (see `sd_attention`). Most scenes are cut to half of their side: the U-Net
has no position embeddings, its size is free, and a quarter of the area costs a quarter of the time.
The weights kept are their running average.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.lab.cards import origin, write_card
from ovss.lab.pretrain.sd import model as sd_model
from ovss.lab.pretrain.sd.attention import attending, supervised
from ovss.lab.pretrain.sd.measure import measure
from ovss.lab.pretrain.sd.recipe import LESSONS, Batches, Recipe
from ovss.lab.scenes import render
from ovss.training.loop import Batch, Progress, adamw, run

KL = 1e-6  # of the autoencoder's prior: next to nothing, as in Stable Diffusion


class Latent(nn.Module):
    """All that learns, and the running average of the part that denoises."""

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
        error = self.vae.decode(posterior.sample()).sample - pixels
        return (error.abs().sum() + KL * posterior.kl().sum()) / pixels.numel()

    def noise_loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the noise guessed in the latents of [B, 3, S, S] at random times, and
        of what the finest self-attention makes of the clean latents (see `sd_attention`)."""
        latents = self.latents(pixels)
        times = self.scheduler.config.num_train_timesteps
        time = torch.randint(times, (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, time)
        words = self.denoiser["text"](tokens).last_hidden_state  # [B, T, C]
        unet = self.denoiser["unet"]
        signal = self.scheduler.alphas_cumprod.to(latents)[
            time
        ]  # little is asked where noise is all
        with attending(supervised(unet), latents, signal) as errors:
            guess = unet(noisy, time, encoder_hidden_states=words).sample
        return F.mse_loss(guess.float(), noise) + torch.stack(errors).mean()

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """The autoencoder's mean, with variance one: [B, 4, S/4, S/4]."""
        return self.vae.encode(pixels).latent_dist.mean.float() * self.scale


class Trainer(Progress):
    """The two models, one after the other."""

    model: Latent

    def __init__(self, recipe: Recipe, tokenizer: Any, device: str) -> None:
        super().__init__(recipe, device)
        self.tokenizer = tokenizer
        self.model = Latent(tokenizer).to(device)
        self.optimiser = adamw(self.model, recipe.stages[0].rate, recipe.weight_decay, 0.99)

    def advance(self, batch: Batch) -> float:
        """One step on (pixels, tokens)."""
        stage, within = self.recipe.stage(self.step)
        if stage.learns == "noise" and within == 0:
            self.model.scale.mul_(1 / self.model.latents(unit(batch[0])).std())
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # a resumed run draws the same
        loss = self._loss(stage.learns, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if stage.learns == "noise":
            self._follow()
        self.step, self.images = self.step + 1, self.images + len(batch[0])
        return float(loss.detach())

    def _loss(self, learns: str, pixels: Tensor, tokens: Tensor) -> Tensor:
        images = unit(pixels)
        # The plain kernel's memory traffic is four times slower at 32 x 32 positions.
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel(KERNELS):
            if learns == "image":
                return self.model.image_loss(images)
            return self.model.noise_loss(images, tokens)

    @torch.no_grad()
    def _follow(self) -> None:
        """The running average takes a step towards the weights; a longer one at the beginning."""
        done = self.step - sum(s.steps for s in self.recipe.stages if s.learns == "image")
        share = 1 - min(self.recipe.average, (1 + done) / (10 + done))
        average, current = self.model.average.parameters(), self.model.denoiser.parameters()
        torch._foreach_lerp_(list(average), list(current), share)

    def backbone(self) -> DiffusionBackbone:
        """The averaged model as it is now, for measuring."""
        model = self.model
        model.vae.register_to_config(scaling_factor=float(model.scale))
        parts = (model.average["unet"], model.vae, model.average["text"], self.tokenizer)
        device = torch.device(self.device)
        return DiffusionBackbone(*parts, model.scheduler, "sd", "in training", device)


KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def unit(pixels: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def train(folder: Path, device: str = "cpu", recipe: Recipe | None = None) -> None:
    """Run the recipe and write the model to `folder`; progress is kept beside it until the end."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = sd_model.make_tokenizer(render("pretrain", i, 64).caption for i in range(6000))
    trainer = Trainer(recipe, tokenizer, device)
    run(
        trainer,
        folder,
        partial(Batches, recipe, tokenizer),
        lambda loss: _examine(trainer, loss),
        lambda: _finish(trainer, folder),
    )


def _examine(trainer: Trainer, loss: float) -> None:
    """Add a point to the curve; the last weights are the ones to keep."""
    trainer.model.eval()
    point = measure(trainer.backbone(), "tune", trainer.recipe.curve_scenes)
    trainer.curve.append(
        {"images": trainer.images, "seconds": trainer.seconds, "loss": loss, **point}
    )
    trainer.model.train()


def _finish(trainer: Trainer, folder: Path) -> None:
    """Write the folder and its card."""
    model, recipe = trainer.model.eval(), trainer.recipe
    parts = {"vae": model.vae, "unet": model.average["unet"], "text_encoder": model.average["text"]}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    trainer.backbone()  # leaves the scale in the autoencoder's configuration
    sd_model.save_parts(folder, parts, trainer.tokenizer)
    backbone = DiffusionBackbone.load(folder)
    card = {
        "name": "sd",
        "what": "a latent diffusion model of diffusers, trained from scratch on the lab world",
        "parameters": sum(counts.values()),
        "parts": counts,
        "recipe": asdict(recipe),
        "images_seen": trainer.images,
        "minutes": round(trainer.seconds / 60, 1),
        **origin(),
        "tune": measure(backbone, "tune", recipe.card_scenes),
        "val": measure(backbone, "val", recipe.card_scenes),
        "tried": list(LESSONS),
    }
    write_card(folder, trainer.curve, card, "unet/diffusion_pytorch_model.safetensors")
