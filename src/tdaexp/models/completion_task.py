"""A language model as a network of two classes: the record's own completion, or anything else.

With S the log-probability of the completion's tokens, the logits are [S, log(1 − e^S)], which are log-probabilities
themselves. Class 0 is always the right one, so that the cross-entropy is −S, the summed loss of the tokens, the margin
is the log-odds of the completion, and the target's logit its log-likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdaexp.data.examples import Example, collate
from tdaexp.data.tensors import TensorExamples
from tdaexp.models.components import ComponentMap, grouped
from tdaexp.models.layers import canonical_name
from tdaexp.runtime.errors import UserError

PREFIX = "network."
CAUSAL = ("llama", "olmo", "gpt_neox", "gpt2")
"""Architectures that take a mask of all pairs of positions."""


class CompletionTask(nn.Module):
    """`inputs` [N, T, 2] int64, tokens and whether each one's loss counts -> logits [N, 2].

    Padding stands on the right and carries no loss: under a causal mask no counted position sees it.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        """Take a model in eval mode. Errors (UserError): an architecture that takes no mask of pairs."""
        super().__init__()
        if network.config.model_type not in CAUSAL:
            raise UserError(
                f"model: the architecture '{network.config.model_type}' cannot be recorded; those that can: "
                + ", ".join(CAUSAL)
            )
        network.set_attn_implementation("eager")  # plain operations, which have forward-mode derivatives
        self.network = network.eval()

    def token_losses(self, inputs: Tensor) -> Tensor:
        """Cross-entropy of each token [N, T − 1] in nats, 0 where it does not count."""
        tokens, counted = inputs[..., 0], inputs[..., 1]
        width = tokens.shape[1]
        dtype = self.network.get_input_embeddings().weight.dtype
        hidden = torch.full((width, width), torch.finfo(dtype).min, dtype=dtype, device=tokens.device).triu(1)
        mask = hidden.expand(len(tokens), 1, width, width)
        places = torch.arange(width, device=tokens.device)[None]
        logits = self.network(input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=False).logits
        logs = logits[:, :-1].log_softmax(-1)
        losses: Tensor = -logs.gather(-1, tokens[:, 1:, None])[..., 0] * counted[:, 1:]
        return losses

    def forward(self, inputs: Tensor) -> Tensor:
        """The two logits [N, 2]."""
        own = -self.token_losses(inputs).sum(1)
        return torch.stack([own, torch.log(-torch.expm1(own))], dim=1)

    def components(self) -> ComponentMap:
        """Components by the names that they have everywhere; a fused q, k, v matrix is one."""
        kind = self.network.config.model_type
        members: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            members.setdefault(canonical_name(name.removeprefix(PREFIX)), []).append(name)
        return grouped(members, {name: parameter.numel() for name, parameter in self.named_parameters()}, kind)


def as_tensors(examples: Sequence[Example], width: int) -> TensorExamples:
    """Tokenised examples padded on the right to `width` positions, all of class 0."""
    batch = collate(examples)
    inputs = torch.stack([batch.tokens, batch.loss_mask.to(torch.int64)], dim=-1)
    padded = nn.functional.pad(inputs, (0, 0, 0, width - inputs.shape[1]))
    return TensorExamples(
        [one.id for one in examples], padded, torch.zeros(len(examples), dtype=torch.int64, device="cpu")
    )
