"""The training loop: batches, losses, optimizers, moving average of the weights and the saved training state.

Each training process runs one `Trainer` on a CPU or a GPU. The random numbers of a step depend only on the seed, the
number of the step and the rank of the process, so a resumed run continues like an uninterrupted one.

Shapes: B images, N prompts, M masks per prompt, J answers (ground-truth masks), C channels, H W embedding grid,
h w mask side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grad_norm_

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.network import Network
from maskmill.model.prompts import AMBIGUITY_MASKS, SINGLE_MASK, best_ambiguity_mask, choose
from maskmill.model.training.augment import Example, augment, paste
from maskmill.model.training.data import Dataset, LabelledImage, TrainingDataError
from maskmill.model.training.initialise import initialise, load_resized
from maskmill.model.training.losses import affinity_loss, best_iou, mask_costs, matched_loss, neighbour_loss
from maskmill.model.training.optimizers import make_optimizers
from maskmill.model.training.prompts import Batch, error_clicks, make_batch
from maskmill.model.training.recipe import TrainingConfig

# Attempts to get a photograph crop with a label; after that, a scene is used.
MAX_CROPS = 20
# A mask matches an answer if their IoU is above this threshold.
_FITS = 0.5


class Learner(nn.Module):
    """A Network and auxiliary heads for the affinity and neighbour losses. The heads are discarded after training."""

    def __init__(self, network: Network, affinity_channels: int) -> None:
        super().__init__()
        self.network = network
        self.affinity = nn.Conv2d(network.config.embed_dim, affinity_channels, kernel_size=1)
        self.affinity_scale = nn.Parameter(torch.tensor([8.0, -4.0]))
        dim = network.config.embed_dim
        widths = (dim, dim // 4, dim // 8) if network.config.high_resolution_skips else (dim,)
        self.neighbours = nn.ModuleList(nn.Conv2d(width, affinity_channels // 2, kernel_size=1) for width in widths)
        self.neighbour_scale = nn.Parameter(torch.tensor([8.0, -4.0]))

    def fine_features(self, embedding: ImageEmbedding) -> Tensor:
        """Returns (B, F, h, w): projections of the embedding and the skips, resized to logit resolution and summed."""
        size = (self.network.config.mask_size,) * 2
        levels = (embedding.grid_BCYX, *embedding.skips)
        return torch.stack(
            [F.interpolate(head(x), size, mode="bilinear") for head, x in zip(self.neighbours, levels, strict=True)]
        ).sum(0)


class Trainer:
    """Trains a Network: holds the weights, their moving average, the optimizers and the current step."""

    def __init__(
        self,
        model: NetworkConfig,
        recipe: TrainingConfig,
        scenes: Dataset,
        photographs: Sequence[Dataset],
        device: str = "cpu",
        start: Mapping[str, Tensor] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Creates a trainer at step 0.

        Args:
            start: initial weights, a full or partial state dict of `model` at any input side. All other weights are
                initialised randomly.
            weights: relative sampling weights of the data sets in `photographs`. Default: equal weights.
        """
        self.model, self.recipe, self.device = model, recipe, device
        self._scenes, self._photographs = scenes, photographs
        self._chances = np.array(weights or [1.0] * len(photographs)) / (sum(weights or ()) or max(1, len(photographs)))
        self.step = 0
        self._rank, self._processes = 0, 1
        if distributed.is_initialized():
            self._rank, self._processes = distributed.get_rank(), distributed.get_world_size()
        torch.manual_seed(recipe.seed)
        network = Network(self._model_at(0))
        initialise(network)
        if start is not None:
            network = load_resized(self._model_at(0), {**network.state_dict(), **start})
        self._learner = Learner(network, recipe.affinity_channels).to(device)
        self._start, self._start_digest = start, start and _digest(start)
        self._average = {name: value.clone() for name, value in network.state_dict().items()}
        self._optimizers = make_optimizers(self._learner, recipe.weight_decay)

    @property
    def image_size(self) -> int:
        """Current input side of the model, in pixels."""
        return self._learner.network.config.image_size

    def averaged_network(self, image_size: int | None = None) -> Network:
        """Returns a network with the moving average of the weights and the initial weights (`start_share`).

        Its input side is `image_size`; the default is the input side of the configured model.
        """
        config = dataclasses.replace(self.model, image_size=image_size or self.model.image_size)
        network = load_resized(config, self._average)
        if self._start is not None and self.recipe.start_share:
            with torch.no_grad():
                for average, start in zip(
                    network.parameters(), load_resized(config, self._start).parameters(), strict=True
                ):
                    average.lerp_(start.to(average.device), self.recipe.start_share)
        return network.to(self.device).eval()

    def run(self, until: int | None = None) -> Iterator[dict[str, float]]:
        """Trains up to step `until` (default: the last step of the recipe) and yields the losses of each step."""
        last = self.recipe.total_steps if until is None else until
        if self.step >= last:
            return
        with ThreadPoolExecutor(max_workers=1) as loader:
            upcoming = loader.submit(self._draw_batch, self.step)
            while self.step < last:
                self._enter_stage()
                batch = upcoming.result()
                if self.step + 1 < last:
                    upcoming = loader.submit(self._draw_batch, self.step + 1)
                losses = self._train_step(batch)
                self.step += 1
                yield losses

    def save(self, path: Path) -> None:
        """Saves the training state atomically, by renaming a temporary file."""
        state = {
            "step": self.step,
            **self._identity(),
            "learner": self._learner.state_dict(),
            "average": self._average,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Restores the training state from a file that `save` wrote.

        Raises:
            TrainingDataError: the file belongs to another recipe, another model or other initial weights.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        for what, value in self._identity().items():
            if state[what] != value:
                raise TrainingDataError(f"{path} is a run of another {what}; train into another folder")
        self.step = state["step"]
        learner = state["learner"]
        network_state = {
            name.removeprefix("network."): value for name, value in learner.items() if name.startswith("network.")
        }
        side = network_state["image_encoder.pos_embed"].shape[1] * self.model.patch_size
        self._learner.network = load_resized(dataclasses.replace(self.model, image_size=side), network_state).to(
            self.device
        )
        self._learner.load_state_dict(learner)
        self._average = state["average"]
        self._optimizers = make_optimizers(self._learner, self.recipe.weight_decay)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _identity(self) -> dict[str, object]:
        """Returns the settings that must be equal for a run to resume from a saved state."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "model": dataclasses.asdict(self.model),
            "checkpoint": self._start_digest,
        }

    def _model_at(self, step: int) -> NetworkConfig:
        return dataclasses.replace(self.model, image_size=self.recipe.stage_at(step)[1].image_size)

    def _enter_stage(self) -> None:
        """Resizes the weights, their moving average and the optimizer states if the input side changes at this step."""
        config = self._model_at(self.step)
        old = self._learner.network
        if old.config.image_size == config.image_size:
            return
        parameters = list(self._learner.parameters())
        moments = {id(p): state for optimizer in self._optimizers for p, state in optimizer.state.items()}
        self._learner.network = load_resized(config, old.state_dict()).to(self.device)
        self._average = {k: v.clone() for k, v in load_resized(config, self._average).state_dict().items()}
        self._optimizers = make_optimizers(self._learner, self.recipe.weight_decay)
        now = dict(zip(self._learner.parameters(), parameters, strict=True))
        for optimizer in self._optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                before = now[parameter]
                # Parameters with an unchanged shape keep their optimizer state; resized position tables lose it.
                if id(before) in moments and before.shape == parameter.shape:
                    optimizer.state[parameter] = moments[id(before)]

    def _draw_batch(self, step: int) -> Batch:
        """Samples the images and prompts that this process uses in a step."""
        _, stage = self.recipe.stage_at(step)
        rng = np.random.default_rng((self.recipe.seed, step, self._rank))
        examples = []
        for _ in range(stage.images // self._processes):
            examples.append(self._draw_example(stage.image_size, rng))
        return make_batch(examples, stage.clicks, stage.boxes, self.model, rng)

    def _draw_example(self, side: int, rng: np.random.Generator) -> Example:
        """Samples an augmented image with at least one labelled pixel, which a crop of a photograph may lack."""
        if self._photographs and rng.random() < self.recipe.photograph_share:
            source = self._photographs[int(rng.choice(len(self._photographs), p=self._chances))]
            for _ in range(MAX_CROPS):
                example = augment(self._draw_photograph(source, rng), side, rng)
                if example.maps_Ass.any():
                    return example
        return augment(self._scenes[int(rng.integers(len(self._scenes)))], side, rng)

    def _draw_photograph(self, source: Dataset, rng: np.random.Generator) -> LabelledImage:
        """Samples a photograph of a data set and, with probability `paste_share`, pastes segments of others onto it."""
        photograph = source[int(rng.integers(len(source)))]
        if rng.random() < self.recipe.paste_share:
            for _ in range(rng.integers(1, 3)):
                photograph = paste(photograph, source[int(rng.integers(len(source)))], rng)
        return photograph

    def _train_step(self, batch: Batch) -> dict[str, float]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate(self.step) * group["share"]
        batch = Batch(*(getattr(batch, field.name).to(self.device) for field in dataclasses.fields(Batch)))
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            losses = self._losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        self._learner.zero_grad()
        loss.backward()
        self._average_gradients()
        clip_grad_norm_(self._learner.parameters(), self.recipe.clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self._learner.network.state_dict().items():
                self._average[name].lerp_(value, 1 - decay)
        return {name: value.item() for name, value in losses.items()}

    def _average_gradients(self) -> None:
        """Averages the gradients over all training processes."""
        if self._processes == 1:
            return
        gradients = [p.grad for p in self._learner.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) / self._processes
        distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        recipe, network = self.recipe, self._learner.network
        _, stage = recipe.stage_at(self.step)
        embedding = network.encode_images(batch.images_B3SS)
        clicks, boxes = len(batch.clicks_N2), len(batch.boxes_N4)
        logits_NMhw, predicted_NM = _decode(network, embedding, batch)

        # For clicks, the ambiguity masks are matched to the answers; the target of the single mask is the first answer.
        click_logits, box_logits_Nhw = logits_NMhw[:clicks], logits_NMhw[clicks:, SINGLE_MASK]
        weights_Nhw = _of_prompts(batch.weights_Bhw, clicks)
        costs = mask_costs(click_logits, batch.click_answers_NJhw, weights_Nhw)
        single_N = costs.loss_NMJ[:, SINGLE_MASK, 0]
        ambiguous_N = matched_loss(costs.loss_NMJ[:, AMBIGUITY_MASKS], batch.click_valid_NJ)
        click_iou_NM = best_iou(costs.iou_NMJ, batch.click_valid_NJ)
        box_costs = mask_costs(
            box_logits_Nhw[:, None], batch.box_answers_Nhw[:, None], _of_prompts(batch.weights_Bhw, boxes)
        )
        box_iou_N = box_costs.iou_NMJ[:, 0, 0]
        # A mask that matches no answer may be an unlabelled object. Its IoU loss is therefore weighted by the labelled
        # fraction of the image.
        labelled_N1 = _of_prompts(batch.labelled_B, clicks)[:, None]
        sure_NM = torch.where(click_iou_NM > _FITS, 1.0, labelled_N1)
        losses = {
            "masks": ambiguous_N.mean(),
            "single": 0.3 * single_N.mean(),
            "boxes": boxes / clicks * box_costs.loss_NMJ.mean(),
            "iou": stage.iou_weight
            * (
                (sure_NM * (predicted_NM[:clicks].float() - click_iou_NM).square()).mean()
                + boxes / clicks * (predicted_NM[clicks:, SINGLE_MASK].float() - box_iou_N).square().mean()
            ),
            "affinity": recipe.affinity_weight
            * affinity_loss(self._learner.affinity(embedding.grid_BCYX), batch.maps_BAss, self._learner.affinity_scale),
            "neighbours": recipe.neighbour_weight
            * neighbour_loss(self._learner.fine_features(embedding), batch.maps_BAss, self._learner.neighbour_scale),
        }
        if share := stage.second_round_share:
            losses["second"] = self._second_round(share, batch, embedding, click_logits, predicted_NM, costs.iou_NMJ)
        return losses

    def _second_round(
        self,
        share: float,
        batch: Batch,
        embedding: ImageEmbedding,
        logits_NMhw: Tensor,
        predicted_NM: Tensor,
        iou_NMJ: Tensor,
    ) -> Tensor:
        """Computes the loss of a second, refining click for a random fraction `share` of the clicks.

        The prompt consists of the first click, a click in the error region of the ambiguity mask with the highest
        predicted IoU, and the logits of that mask.
        """
        generator = torch.Generator(self.device).manual_seed(
            (self.recipe.seed * 1_000_003 + self.step) * 64 + self._rank
        )
        count = len(logits_NMhw)
        chosen_K = torch.randperm(count, generator=generator, device=self.device)
        chosen_K = chosen_K[: max(1, int(count * share))]
        best_K = best_ambiguity_mask(predicted_NM[chosen_K])
        previous_Khw = logits_NMhw[chosen_K, best_K].detach().float()
        answer_K = iou_NMJ[chosen_K, best_K].argmax(dim=1)
        answers_Khw = batch.click_answers_NJhw[chosen_K, answer_K]
        second_K2, labels_K = error_clicks(previous_Khw, answers_Khw, generator)
        points_KP2 = torch.stack([batch.clicks_N2[chosen_K], second_K2], dim=1)
        labels_KP = torch.stack([torch.ones_like(labels_K), labels_K], dim=1)
        image_K = chosen_K // (count // len(embedding))
        network = self._learner.network
        decoded = network.decode_prompts(embedding[image_K], points_KP2, labels_KP, masks_N1hw=previous_Khw[:, None])
        keep_KM = choose(SINGLE_MASK, decoded.predicted_iou_NM)
        costs = mask_costs(
            network.decode_masks(decoded, keep_KM)[:, None], answers_Khw[:, None], batch.weights_Bhw[image_K]
        )
        error_K = (decoded.predicted_iou_NM[:, SINGLE_MASK].float() - costs.iou_NMJ[:, 0, 0]).square()
        return len(chosen_K) / count * (costs.loss_NMJ.mean() + error_K.mean())


def _digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 digest of a state dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _decode(network: Network, embedding: ImageEmbedding, batch: Batch) -> tuple[Tensor, Tensor]:
    """Decodes clicks and boxes together; each prompt has two tokens.

    Returns logits (N, M, h, w) and predicted IoUs (N, M), all clicks before all boxes.
    """
    images = len(embedding)
    labels_N1 = torch.ones((len(batch.clicks_N2), 1), dtype=torch.int64, device=batch.clicks_N2.device)
    click_NTC, dense_1C11 = network.prompt_encoder(batch.clicks_N2[:, None], labels_N1)
    box_NTC, _ = network.prompt_encoder(boxes_N4=batch.boxes_N4)
    tokens_BPTC = torch.cat([click_NTC.unflatten(0, (images, -1)), box_NTC.unflatten(0, (images, -1))], dim=1)
    # Cast to the dtype of the embedding: type promotion with a float32 summand would make all image tokens float32.
    dtype = embedding.grid_BCYX.dtype
    positions_1CHW, dense_1C11 = network.prompt_encoder.grid_positions().to(dtype), dense_1C11.to(dtype)
    logits, predicted = [], []
    # A loop over images: prompts of one image share computation on its embedding, and the tensors fit the CPU cache.
    for i, tokens_PTC in enumerate(tokens_BPTC):
        decoded = network.mask_decoder.decode_prompts(embedding[i : i + 1], positions_1CHW, tokens_PTC, dense_1C11)
        everything_PM = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
        logits.append(network.decode_masks(decoded, everything_PM).unflatten(0, everything_PM.shape))
        predicted.append(decoded.predicted_iou_NM)
    clicks = len(batch.clicks_N2) // images
    return _clicks_first(torch.stack(logits), clicks), _clicks_first(torch.stack(predicted), clicks)


def _of_prompts(x_B: Tensor, prompts: int) -> Tensor:
    """Repeats per-image values (B, ...) for the prompts of each image: (N, ...), prompts sorted by image."""
    return x_B.repeat_interleave(prompts // len(x_B), dim=0)


def _clicks_first(x_BPM: Tensor, clicks: int) -> Tensor:
    """Reorders (B, P, M, ...), clicks before boxes in each image, to (N, M, ...), all clicks before all boxes."""
    return torch.cat([x_BPM[:, :clicks].flatten(0, 1), x_BPM[:, clicks:].flatten(0, 1)])
