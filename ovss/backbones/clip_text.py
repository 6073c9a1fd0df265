"""CLIP's text tower: prompts -> embeddings, words -> unit vectors, the latter remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import VocabularyError

if TYPE_CHECKING:
    from .clip_loading import Tokenize

BATCH = 256  # prompts a pass
CACHE = 4096  # words remembered


class TextEncoder:
    """The text tower of an open_clip model with its tokenizer and a bounded cache."""

    def __init__(self, model: Any, tokenize: Tokenize, device: torch.device) -> None:
        self.model = model
        self.tokenize = tokenize
        self.device = device
        self._known: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()

    @torch.no_grad()
    def features(self, words: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        """A unit vector for each word [Q, E]: the normalised mean over its prompts' unit vectors.

        Raises:
            VocabularyError: a prompt is longer than CLIP can read.
        """
        missing = [word for word in words if (word, templates) not in self._known]
        fresh = dict(zip(missing, self._means(missing, templates), strict=True))
        found = [fresh[word] if word in fresh else self._known[word, templates] for word in words]
        self._remember(words, templates, found)
        return torch.stack(found)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as they stand -> CLIP's text embeddings [P, E], not normalised."""
        batches = (list(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH))
        return torch.cat([self._encode_tokens(self.tokens(batch)) for batch in batches])

    def tokens(self, prompts: list[str]) -> Tensor:
        """Token ids [P, context length], padded with 0.

        Raises:
            VocabularyError: a prompt is too long (it would be cut silently), or the model's
                text tower does not know the tokenizer's ids.
        """
        length = int(self.model.context_length)
        ids = self.tokenize(prompts, length + 1)  # one more, to see what does not fit
        too_long = ids[:, -1].nonzero().flatten()
        if too_long.numel():
            prompt = prompts[int(too_long[0])]
            raise VocabularyError(f"{prompt!r} is too long: CLIP reads at most {length} tokens")
        if int(ids.max()) >= self.model.vocab_size:
            raise VocabularyError("this checkpoint's text tower does not fit its tokenizer")
        return ids[:, :length]

    def _encode_tokens(self, ids: Tensor) -> Tensor:
        """As `open_clip.CLIP.encode_text`, but without the padding after the longest prompt.

        The tower is causal and read at the end token, so nothing after it can matter.
        """
        model = self.model
        if model.text_pool_type != "argmax" or model.attn_mask is None:
            return model.encode_text(ids.to(self.device))
        ends = ids.argmax(-1)  # the end token has the highest id
        length = int(ends.max()) + 1
        tokens = model.token_embedding(ids[:, :length].to(self.device))  # [P, T, D]
        tokens = tokens + model.positional_embedding[:length]
        tokens = model.transformer(tokens, attn_mask=model.attn_mask[:length, :length])
        last = tokens[torch.arange(len(ids), device=self.device), ends.to(self.device)]  # [P, D]
        last = model.ln_final(last)
        projection = model.text_projection
        return projection(last) if isinstance(projection, torch.nn.Linear) else last @ projection

    def _means(self, words: Sequence[str], templates: tuple[str, ...]) -> Sequence[Tensor]:
        if not words:
            return []
        prompts = [template.replace("{}", word) for word in words for template in templates]
        features = F.normalize(self.encode(prompts), dim=-1)
        means = rearrange(features, "(q t) e -> q t e", t=len(templates)).mean(1)
        return list(F.normalize(means, dim=-1))

    def _remember(
        self, words: Sequence[str], templates: tuple[str, ...], features: Sequence[Tensor]
    ) -> None:
        for word, feature in zip(words, features, strict=True):
            self._known[word, templates] = feature
            self._known.move_to_end((word, templates))
        while len(self._known) > CACHE:
            self._known.popitem(last=False)
