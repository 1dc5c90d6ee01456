"""All that differs between one-of-K and multi-label prediction, so that no method has to ask which it has."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from jointdiff.data.source import LabelSpec


class Task(ABC):
    """What is predicted. Logits, probabilities, targets and labels are (N, K); unknown labels are NaN."""

    def __init__(self, labels: LabelSpec) -> None:
        self.labels = labels
        self.balance: Tensor | None = None  # what a label weighs in labelled_loss, where rare ones are to weigh more
        self.prior: Tensor | None = None  # (K,): what labelled_loss adds to logits, where frequency is to teach nothing

    @property
    def outputs(self) -> int:
        """Return K."""
        return len(self.labels.names)

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss of each case (N,); target may be soft; weight is (N, 1) or (N, K) in [0, 1]."""

    def labelled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each labelled case (N,), balanced where ``balance_by`` or ``adjust_by`` was called."""
        adjusted = logits if self.prior is None else logits.float() + self.prior
        return self.loss(adjusted, labels, None if self.balance is None else self.weigh(labels))

    @abstractmethod
    def balance_by(self, labels: Tensor) -> None:
        """Let rare labels weigh more: inversely to how often they occur in labels (N, K), 1 on average."""

    @abstractmethod
    def adjust_by(self, labels: Tensor) -> None:
        """Let the log of how frequent each of labels (N, K) is explain its share of them, so that logits need not.

        Trained so, they rank as if all labels were equally frequent (Menon et al. 2021, arXiv 2007.07314, Eq. 10, tau
        1); predictions and pseudo-labels take them without it. What never occurs counts as seen once, not as
        impossible.
        """

    @abstractmethod
    def weigh(self, labels: Tensor) -> Tensor:
        """Return what labels weigh, (N, 1) or (N, K)."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities in [0, 1]."""

    def distributions(self, logits: Tensor) -> Tensor:
        """Return the probabilities of what excludes each other (N, M, C): of M contests with C outcomes each.

        Of K classes that is one contest of K (N, 1, K), of K findings K contests of absence and presence (N, K, 2).
        What is written over distributions holds for both.
        """
        return self.log_distributions(logits).exp()

    @abstractmethod
    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return the logarithms of ``distributions`` (N, M, C)."""

    @abstractmethod
    def as_distributions(self, labels: Tensor) -> Tensor:
        """Return labels or probabilities (N, K) as distributions (N, M, C); what is unknown stays NaN."""

    @abstractmethod
    def as_labels(self, distributions: Tensor) -> Tensor:
        """Return distributions (N, M, C) as soft labels (N, K)."""

    @abstractmethod
    def pseudo_labels(self, logits: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
        """Return hard targets (N, K) and where they are confident, a float mask (N, 1) or (N, K)."""

    @abstractmethod
    def finding_loss(self, logits: Tensor, finding: int, target: float) -> Tensor:
        """Return -log p(finding is ``target``) of each case (N,), target 0 (absent) or 1 (present)."""

    @property
    @abstractmethod
    def contests(self) -> tuple[tuple[int, ...], ...]:
        """Return which conditions exclude each other; a conditional model is asked which of each contest fits best."""

    @property
    def conditions(self) -> int:
        """Return how many conditions there are; the next number stands for none of them."""
        return sum(map(len, self.contests))

    @property
    @abstractmethod
    def condition_names(self) -> tuple[str, ...]:
        """Return a name for each condition."""

    @abstractmethod
    def draw_conditions(self, labels: Tensor) -> Tensor:
        """Return a condition (N,) that each of the labels fulfils, at random where there are several."""

    @abstractmethod
    def conditions_of(self, labels: Tensor) -> list[Tensor]:
        """Return the conditions (N,) that known labels fulfil, one list entry per contest."""

    @abstractmethod
    def outcome(self, chosen: list[Tensor]) -> Tensor:
        """Return probabilities (N, K) from those of each contest, (N, C) each."""

    @abstractmethod
    def conditions_for(self, finding: int, target: float) -> tuple[int, ...]:
        """Return the conditions under which ``finding`` is absent (target 0) or present (1)."""

    @abstractmethod
    def labels_of(self, conditions: Tensor) -> Tensor:
        """Return the labels (N, K) that conditions (N,) stand for, NaN where they leave one open."""


class OneOfK(Task):
    """Exactly one of K classes: softmax and cross-entropy."""

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of each case (N,)."""
        known = ~target.isnan()
        case = -(torch.where(known, target, 0.0) * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
        return case if weight is None else case * weight.squeeze(1)

    def balance_by(self, labels: Tensor) -> None:
        """Give every class the same share of the loss."""
        counts = labels.nansum(dim=0)
        self.balance = counts.sum() / ((counts > 0).sum().clamp(min=1) * counts.clamp(min=1.0))

    def adjust_by(self, labels: Tensor) -> None:
        """Take the log of each class's share."""
        counts = labels.nansum(dim=0).clamp(min=1.0)
        self.prior = (counts / counts.sum()).log()

    def weigh(self, labels: Tensor) -> Tensor:
        """Return the weight of each case's class (N, 1)."""
        assert self.balance is not None
        return labels.nan_to_num(0.0) @ self.balance[:, None]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax."""
        return logits.float().softmax(dim=1)

    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return the log-softmax (N, 1, K)."""
        return F.log_softmax(logits.float(), dim=1)[:, None]

    def as_distributions(self, labels: Tensor) -> Tensor:
        """Return them as the one contest's (N, 1, K)."""
        return labels[:, None]

    def as_labels(self, distributions: Tensor) -> Tensor:
        """Return the one contest's."""
        return distributions.squeeze(1)

    def pseudo_labels(self, logits: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
        """Return the most probable class as one-hot, confident where its probability reaches ``threshold``."""
        confidence, best = self.probabilities(logits).max(dim=1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(1, best, 1.0), (confidence >= threshold).float()

    def finding_loss(self, logits: Tensor, finding: int, target: float) -> Tensor:
        """Return -log p_k for target 1 and -log(1 - p_k) for target 0."""
        log_p = F.log_softmax(logits.float(), dim=1)
        if target >= 0.5:
            return -log_p[:, finding]
        return -torch.cat([log_p[:, :finding], log_p[:, finding + 1 :]], dim=1).logsumexp(dim=1)

    @property
    def contests(self) -> tuple[tuple[int, ...], ...]:
        """Return one contest of all classes."""
        return (tuple(range(self.outputs)),)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Return the classes."""
        return self.labels.names

    def draw_conditions(self, labels: Tensor) -> Tensor:
        """Return the class, or none where it is unknown."""
        return torch.where(labels.isnan().any(dim=1), self.conditions, labels.nan_to_num(0.0).argmax(dim=1))

    def conditions_of(self, labels: Tensor) -> list[Tensor]:
        """Return the class."""
        return [labels.argmax(dim=1)]

    def outcome(self, chosen: list[Tensor]) -> Tensor:
        """Return the one contest's."""
        return chosen[0]

    def conditions_for(self, finding: int, target: float) -> tuple[int, ...]:
        """Return the class itself, or all others."""
        return tuple(k for k in range(self.outputs) if (k == finding) == (target >= 0.5))

    def labels_of(self, conditions: Tensor) -> Tensor:
        """Return the class as one-hot."""
        return F.one_hot(conditions, self.outputs).float()


class MultiLabel(Task):
    """Any of K findings: a sigmoid and binary cross-entropy each, averaged over the known ones."""

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean binary cross-entropy over known findings of each case (N,)."""
        known = (~target.isnan()).float()
        each = F.binary_cross_entropy_with_logits(logits.float(), target.nan_to_num(0.0), reduction="none") * known
        if weight is not None:
            each = each * weight
        return each.sum(dim=1) / known.sum(dim=1).clamp(min=1.0)

    def balance_by(self, labels: Tensor) -> None:
        """Give presence and absence of each finding the same share of its loss."""
        known = (~labels.isnan()).sum(dim=0)
        present = labels.nansum(dim=0)
        counts = torch.stack([known - present, present])
        self.balance = known / ((counts > 0).sum(dim=0).clamp(min=1) * counts.clamp(min=1.0))

    def adjust_by(self, labels: Tensor) -> None:
        """Take log (p / (1 - p)) of each finding, p being its share among the images where it is known."""
        present, absent = labels.nansum(dim=0), (1.0 - labels).nansum(dim=0)
        self.prior = present.clamp(min=1.0).log() - absent.clamp(min=1.0).log()

    def weigh(self, labels: Tensor) -> Tensor:
        """Return the weight of each label (N, K)."""
        assert self.balance is not None
        return torch.where(labels >= 0.5, self.balance[1], self.balance[0])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid."""
        return logits.float().sigmoid()

    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return log (1 - p) and log p of each finding (N, K, 2)."""
        return F.logsigmoid(torch.stack([-logits, logits], dim=2).float())

    def as_distributions(self, labels: Tensor) -> Tensor:
        """Return absence and presence of each finding (N, K, 2)."""
        return torch.stack([1.0 - labels, labels], dim=2)

    def as_labels(self, distributions: Tensor) -> Tensor:
        """Return the presence of each finding."""
        return distributions[..., 1]

    def pseudo_labels(self, logits: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
        """Return presence per finding, confident where p >= threshold or p <= 1 - threshold."""
        p = self.probabilities(logits)
        return (p >= 0.5).float(), ((p >= threshold) | (p <= 1.0 - threshold)).float()

    def finding_loss(self, logits: Tensor, finding: int, target: float) -> Tensor:
        """Return the binary cross-entropy of one finding."""
        logit = logits[:, finding].float()
        return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target), reduction="none")

    @property
    def contests(self) -> tuple[tuple[int, ...], ...]:
        """Return a pair for each finding: absent (2k) and present (2k + 1)."""
        return tuple((2 * k, 2 * k + 1) for k in range(self.outputs))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Return each finding with its state."""
        return tuple(f"{name}={state}" for name in self.labels.names for state in ("absent", "present"))

    def draw_conditions(self, labels: Tensor) -> Tensor:
        """Return absence or presence of one known finding, drawn for each image; none where nothing is known."""
        known = ~labels.isnan()
        # A floor, since multinomial refuses a row without any weight; its draw is discarded.
        picked = torch.multinomial(known.float() + 1e-9, 1)
        state = labels.nan_to_num(0.0).gather(1, picked).ge(0.5).long()
        return torch.where(known.any(dim=1), (2 * picked + state)[:, 0], self.conditions)

    def conditions_of(self, labels: Tensor) -> list[Tensor]:
        """Return each finding's absence or presence."""
        return [2 * k + labels[:, k].ge(0.5).long() for k in range(self.outputs)]

    def outcome(self, chosen: list[Tensor]) -> Tensor:
        """Return the probability of each finding's presence."""
        return torch.stack([pair[:, 1] for pair in chosen], dim=1)

    def conditions_for(self, finding: int, target: float) -> tuple[int, ...]:
        """Return the finding's absence or presence."""
        return (2 * finding + int(target >= 0.5),)

    def labels_of(self, conditions: Tensor) -> Tensor:
        """Return the state of the one finding."""
        labels = torch.full((len(conditions), self.outputs), torch.nan, device=conditions.device)
        return labels.scatter_(1, conditions[:, None] // 2, (conditions[:, None] % 2).float())


def task_for(labels: LabelSpec) -> Task:
    """Return the task of a data set's labels."""
    return {"one_of_k": OneOfK, "multi_label": MultiLabel}[labels.kind](labels)
