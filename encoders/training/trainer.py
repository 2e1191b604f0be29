"""Runs a recipe: `retr train`.

Whatever is random in a step follows from the recipe's seed, the epoch and the step, so that a
run that was killed and goes on from its checkpoint ends with the weights of one that was not.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn import functional

from encoders.inference import autocast, floats, keep_freed_memory, torch_device
from encoders.networks import Network
from encoders.training.batches.augmentation import Mixed, augmented, cut_mixed
from encoders.training.batches.sampling import batches
from encoders.training.batches.training_set import NO_LABEL, TrainingSet, read_training_set
from encoders.training.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from encoders.training.checks import check_data, check_network, check_recipe, doubts
from encoders.training.optimization.depthwise import FastDepthwise
from encoders.training.optimization.losses import RECONSTRUCTION, Term, pairs_of
from encoders.training.optimization.optimizers import Optimizers
from encoders.training.recipe import Recipe, read_recipe, recipe_names, typed
from encoders.training.reports import (
    RECONSTRUCTIONS,
    draw_reconstructions,
    embed,
    machine,
    score,
    versions,
    write_reports,
)
from encoders.training.start import Start, start_from
from retrieval.contracts import Framing, Json
from retrieval.errors import BadData, BadInput, CannotWrite, Mismatch, RetrError, UnknownName
from retrieval.registry import encoder_names, encoder_plugin
from retrieval.storage.cards import CARD, IMAGES, WEIGHTS, Card, TrainingFacts, is_trained
from retrieval.storage.files import locked, made_folder, sha256_of, write_whole

VERSION = 1  # of checkpoints
CHECKPOINT_SECONDS = 60
SAMPLE_PIXELS = 10_000 * 32 * 32  # of the images from which a network takes its statistics
SHOWN = 50  # images in the picture of reconstructions
SCORED = 1_000  # images that are scored after an epoch; after the last, all held-out ones

OnStep = Callable[[int, int], None]
OnEpoch = Callable[[Mapping[str, Json]], None]


class Trainer:
    """The plug-in behind `retr train`."""

    def recipes(self) -> dict[str, str]:
        """The recipes that ship, and what each is for."""
        return {name: read_recipe(name).about for name in recipe_names()}

    def doubts(self, recipe: str, changes: list[str]) -> list[str]:
        """What can be trained as the recipe says, and is seldom meant.

        Raises BadInput and its kinds for what is no recipe.
        """
        read = read_recipe(recipe, changes)
        return doubts(replace(read, network=_network_of(read)[1].to_json()))

    def train(
        self,
        recipe: str,
        changes: list[str],
        folder: Path,
        *,
        data: Path | None,
        device: str,
        on_step: OnStep,
        on_epoch: OnEpoch,
    ) -> Card:
        """The card of the trained encoder in `folder`, which is trained unless it is there.

        recipe: a name or a TOML file; changes: `KEY=VALUE`. A run that was stopped goes on.
        on_step is called with images done and to do, on_epoch with each row of the log.

        Raises BadInput and its kinds for what cannot be trained as asked, Mismatch where the
        folder holds another run, RetrError when the loss stops being a number or the disk is full.
        """
        return train(read_recipe(recipe, changes), folder, data, device, on_step, on_epoch)

    def forward_pass(self, device: str) -> AbstractContextManager[object]:
        """What a step's forward pass runs in: its precision, and how its gradients will come."""
        return _forward_pass(torch_device(device))


@contextmanager
def _forward_pass(device: torch.device) -> Iterator[None]:
    with autocast(device), FastDepthwise():
        yield


def train(
    recipe: Recipe,
    folder: Path,
    data_folder: Path | None = None,
    device: str = "auto",
    on_step: OnStep = lambda done, total: None,
    on_epoch: OnEpoch = lambda row: None,
) -> Card:
    """As `Trainer.train`, for a recipe that has been read."""
    began = time.perf_counter()
    network_type, settings = _network_of(recipe)
    side = recipe.data.side or network_type.natural_side(settings)
    # Defaults written out.
    recipe = replace(recipe, network=settings.to_json(), data=replace(recipe.data, side=side))
    check_recipe(recipe)
    where = torch_device(device)
    framing = Framing(side=recipe.data.side)
    if is_trained(folder):
        _check_made_by(folder / CARD, Card.read(folder).training.recipe, recipe)
    data = read_training_set(recipe.data, framing, recipe.seed, data_folder)
    check_data(recipe, network_type, data)
    torch.manual_seed(seed_of(recipe.seed, "network"))
    network = _built(network_type, settings, data, framing)
    start = start_from(recipe.start, network, data) if recipe.start else Start()
    terms = _terms(recipe, network, len(data.names))
    start.hand_over(terms, data.names)
    check_network(recipe, network, terms, len(data.training))
    made_folder(folder)
    with locked(folder):
        if is_trained(folder):
            card = Card.read(folder)
            _check_made_by(folder / CARD, card.training.recipe, recipe)
            _check_origin(folder / CARD, card.training.data, data, start)
            (folder / CHECKPOINT).unlink(missing_ok=True)  # of a run that was killed at its end
            return card
        try:
            run = Run(recipe, network, terms, data, start, framing, folder, where)
            run.position.total_seconds += time.perf_counter() - began
            return run.finish(on_step, on_epoch)
        except BrokenPipeError:
            raise  # whoever was told of the epochs is gone
        except (OSError, CannotWrite) as error:
            raise RetrError(
                f"cannot write into {folder} ({error.strerror}); the last checkpoint is whole: "
                "make room and run the same command again"
            ) from error


def _network_of(recipe: Recipe) -> tuple[type[Network], Any]:
    network_type = _trainable(recipe.encoder) if recipe.encoder in encoder_names() else None
    if network_type is None:
        trainable = [name for name in encoder_names() if _trainable(name) is not None]
        raise UnknownName("trainable encoder", recipe.encoder, trainable)
    return network_type, typed(network_type.settings_type, recipe.network, "network")


def _trainable(name: str) -> type[Network] | None:
    """The network of the encoder; several encoders may run one, that of its own name is trained."""
    plugin = encoder_plugin(name)
    return plugin.network_type if getattr(plugin, "plugin", None) == name else None


def _check_made_by(file: Path, made_by: Mapping[str, Json], recipe: Recipe) -> None:
    """Raise Mismatch unless the file was made by this recipe.

    A setting that was not there yet had its default.
    """
    wanted = recipe.to_json()
    kind = _network_of(recipe)[0].settings_type
    try:
        before = cast(Recipe, typed(Recipe, made_by, str(file)))
        before = replace(before, network=typed(kind, before.network, str(file)).to_json())
        made_by = before.to_json()
    except BadInput:
        pass  # another encoder's, or with settings that there are no longer
    for key in sorted({*made_by, *wanted} - {"about"}):
        met, given = made_by.get(key), wanted.get(key)
        if met != given:
            raise Mismatch(
                f"{file} is of another recipe (its {key} is {met}, not {given}); name another "
                "folder with --out, or delete it"
            )


def _origin(data: TrainingSet, start: Start) -> dict[str, Json]:
    """What a run is made from."""
    return data.facts() | start.facts()


def _check_origin(
    file: Path, made_from: Mapping[str, Json], data: TrainingSet, start: Start
) -> None:
    """Raise Mismatch unless the file was made from these images, and from the same start."""
    if made_from != _origin(data, start):
        raise Mismatch(
            f"{file} was made from other images of {data.source}, or from an encoder that is "
            "another by now; name another folder with --out, or delete it"
        )


def _terms(recipe: Recipe, network: Network, classes: int) -> nn.ModuleList:
    """The losses of embeddings."""
    terms = [
        Term(
            loss,
            recipe.data.clusters if loss.labels == "cluster" else classes,
            network.training_dim,
        )
        for loss in recipe.losses
        if loss.name != RECONSTRUCTION
    ]
    return nn.ModuleList(terms)


@dataclass(slots=True)
class Position:
    """How far a run is."""

    epoch: int = 0
    step: int = 0  # within the epoch
    losses: list[float] = field(default_factory=list)  # of the epoch's steps so far
    seconds: float = 0.0  # spent in this epoch
    total_seconds: float = 0.0


class Run:
    """One training run; made on a folder with its checkpoint, it goes on behind that."""

    def __init__(
        self,
        recipe: Recipe,
        network: Network,
        terms: nn.ModuleList,
        data: TrainingSet,
        start: Start,
        framing: Framing,
        folder: Path,
        device: torch.device,
    ) -> None:
        keep_freed_memory()
        self.recipe, self.data, self.start, self.framing = recipe, data, start, framing
        self.folder, self.device = folder, device
        self.network = network
        self.terms = terms.to(device)
        self.drawing = sum(loss.weight for loss in recipe.losses if loss.name == RECONSTRUCTION)
        self.pixels = torch.from_numpy(data.images).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.clusters = torch.from_numpy(data.clusters).to(device)
        self.training = torch.from_numpy(data.training)
        # Spread over all: a folder's images stand class by class.
        most = max(1, SAMPLE_PIXELS // framing.side**2)
        sample = data.training[:: -(-len(data.training) // most)]
        self.network.to(device)
        if not recipe.start:
            self.network.prepare(floats(self.pixels[torch.from_numpy(sample)]))
        self.network.to(memory_format=torch.channels_last)
        self.weights_at_start = (
            {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            if recipe.keep_start
            else {}
        )
        self.optimizers = Optimizers(recipe.optimizer, self.network, self.terms)
        coins = torch.rand(len(data.images), generator=_generator(recipe.seed, "coin"))
        self.coin = (coins < 0.5).to(device)
        self.position = Position()
        self.rows: list[dict[str, Json]] = []
        self.load()

    def finish(self, on_step: OnStep, on_epoch: OnEpoch) -> Card:
        """Train to the end, publish weights, card, log and curves, and return the card.

        Raises RetrError where numbers grow beyond what floats hold.
        """
        try:
            for row in self.rows:
                on_epoch(row)
            while self.position.epoch < self.recipe.epochs:
                on_epoch(self.epoch(on_step))
            trained = time.perf_counter()
            self.average()
            if self.network.needs_features:
                self.keep_proxies()
                self.network.load_state_dict(self.rounded())  # fitted to what will be written
                self.fit()
            return self.publish(trained)
        except FloatingPointError as error:
            raise RetrError(
                f"{error}; {self.last_good()}; train into another --out with a lower optimizer.lr "
                f"than {self.recipe.optimizer.lr}"
            ) from None

    def average(self) -> None:
        """Let the weights keep the recipe's share of those at the start.

        Wortsman et al., Robust fine-tuning of zero-shot models (CVPR 2022): the mean of weights
        before and after a fine-tuning may be better than either. No checkpoint is written behind
        this, so that a run that goes on comes here once.
        """
        share = self.recipe.keep_start
        if not share:
            return
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                if tensor.is_floating_point():
                    tensor.lerp_(self.weights_at_start[name], share)
        self.start.hand_over(self.terms, self.data.names, share)

    def fit(self) -> None:
        """Fit what the network fits to the features of all training images."""
        extractor = self.network.features().to(self.device).eval()
        images = self.data.images[self.data.training]
        features = embed(extractor, images, self.device, self.network.at_once)
        labels = self.labels[self.training].cpu()
        torch.manual_seed(seed_of(self.recipe.seed, "fit"))
        self.network.fit(torch.from_numpy(features), labels)

    def epoch(self, on_step: OnStep) -> dict[str, Json]:
        """Train the rest of the epoch at hand, score it, and return its row of the log."""
        here, recipe = self.position, self.recipe
        order = _generator(recipe.seed, "order", here.epoch)
        parts = batches(recipe.sampler, self.labels[self.training].cpu(), order)
        images = len(parts) * recipe.sampler.batch
        self.network.train()
        started = saved = time.perf_counter()
        before = here.seconds
        while here.step < len(parts):
            done = (here.epoch + here.step / len(parts)) / recipe.epochs
            loss = self.step(self.training[parts[here.step]], done)
            here.losses.append(loss)
            here.step += 1
            now = time.perf_counter()
            here.seconds = before + now - started
            on_step(here.epoch * images + here.step * recipe.sampler.batch, recipe.epochs * images)
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.perf_counter()
        trained = time.perf_counter()
        metrics = self.scored(SCORED)
        row: dict[str, Json] = {
            "epoch": here.epoch + 1,
            "loss": float(np.mean(here.losses)),
            "seconds": round(here.seconds, 1),
            "images_per_second": round(images / here.seconds, 1),
            **metrics,
        }
        self.rows.append(row)
        total = here.total_seconds + here.seconds + time.perf_counter() - trained
        self.position = Position(epoch=here.epoch + 1, total_seconds=total)
        self.save()
        write_reports(self.folder, self.rows)
        return row

    def step(self, rows: Tensor, done: float) -> float:
        """Train on the images of these rows (n,); return the loss. done: share of the run."""
        here, recipe = self.position, self.recipe
        place = (recipe.seed, "step", here.epoch, here.step)
        torch.manual_seed(seed_of(*place))  # for dropout
        generator = _generator(*place, device=self.device)
        rows = rows.to(self.device)
        images = augmented(
            floats(self.pixels[rows]),
            recipe.augmentation,
            here.epoch,
            self.coin[rows],
            generator,
        )
        loss = self.loss(cut_mixed(images, recipe.augmentation.cutmix, generator), rows)
        loss.backward()
        value = loss.item()
        # Weights are moved by finite numbers alone: checkpoints stay good.
        for name, met in (("loss", value), ("length of its gradient", self.optimizers.length())):
            if not math.isfinite(met):
                raise FloatingPointError(
                    f"the {name} is {met} in epoch {here.epoch + 1}, step {here.step + 1}"
                )
        self.optimizers.step(done)
        return value

    def loss(self, mixed: Mixed, rows: Tensor) -> Tensor:
        """The recipe's loss of a batch (views · n, 3, side, side) of these rows (n,).

        Where images have parts of others, it is the loss by their own labels and that by the
        others', each for its share of the area.
        """
        with _forward_pass(self.device):
            embeddings, drawn = self.network.outputs(mixed.images)
        embeddings = embeddings.float()
        total = mixed.kept * self.loss_of(embeddings, rows)
        if mixed.kept < 1:
            total = total + (1 - mixed.kept) * self.loss_of(embeddings, rows[mixed.partners])
        if self.drawing:
            assert drawn is not None
            # Drawings are as large as the images, views perhaps smaller. Drawings scaled down
            # instead would be free to hold a grid that the scaling does not see.
            wanted = functional.interpolate(mixed.images, drawn.shape[-1], mode="bilinear")
            total = total + self.drawing * functional.mse_loss(drawn.float(), wanted)
        return total

    def loss_of(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The losses of embeddings (views · n, dim), as if of these rows (n,)."""
        views = self.recipe.augmentation.views
        shared = {
            "class": self.labels[rows].repeat(views),
            "cluster": self.clusters[rows].repeat(views),
            "image": torch.arange(len(rows), device=self.device).repeat(views),
        }
        pairs = pairs_of(shared["class"]) if self.recipe.sampler.name == "pairs" else None
        total = embeddings.new_zeros(())
        for term in self.terms:
            assert isinstance(term, Term)
            total = total + term(embeddings, shared[term.settings.labels], pairs)
        return total

    def proxies(self) -> Tensor | None:
        """The class proxies (classes, dim) of the first loss that has them."""
        found = (term.proxies() for term in self.terms if isinstance(term, Term))
        return next((proxies for proxies in found if proxies is not None), None)

    def keep_proxies(self) -> None:
        """Hand the network the losses' class proxies, if its embeddings have shares of them."""
        proxies = self.proxies()
        if self.network.proxies is not None and proxies is not None:
            self.network.keep_proxies(proxies)

    def scored(self, most: int | None = None) -> dict[str, Json]:
        """How well held-out images find each other, or training images where none are held out.

        most: how many images are scored at most; None: all that are held out.
        """
        self.keep_proxies()
        chosen, on = self._shown(most)
        embedder = self.network.embedder().to(self.device).eval()
        names = [self.data.names[label] for label in self.data.labels[chosen].tolist()]
        return score(
            embedder,
            self.data.images[chosen],
            [None if name == NO_LABEL else name for name in names],
            on,
            self.device,
            self.network.metric,
            self.network.at_once,
        )

    def _shown(self, most: int | None) -> tuple[NDArray[np.int64], str]:
        """Rows to score, and what they are: held out, or trained on where none are held out."""
        rows, what = self.data.held_out, "held-out"
        if not len(rows):
            rows, what, most = self.data.training, "training", SCORED
        if most is None or most >= len(rows):
            return rows, what
        draw = np.random.default_rng(self.recipe.seed).permutation(len(rows))[:most]
        return rows[np.sort(draw)], what

    def save(self) -> None:
        """Replace the checkpoint by one of here and now."""
        here = self.position
        state = {
            "version": VERSION,
            "recipe": self.recipe.to_json(),
            "data": _origin(self.data, self.start),
            "epoch": here.epoch,
            "step": here.step,
            "losses": here.losses,
            "seconds": here.seconds,
            "total_seconds": here.total_seconds,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "terms": self.terms.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        save_checkpoint(self.folder, state)

    def load(self) -> None:
        """Take up the folder's checkpoint, if there is one. Raises Mismatch if it is another's."""
        state = load_checkpoint(self.folder)
        if state is None:
            return
        file = self.folder / CHECKPOINT
        if state.get("version") != VERSION:
            raise BadData(
                f"{file} is of version {state.get('version')}, this retr writes {VERSION}; delete "
                "it to train from the start"
            )
        _check_made_by(file, state["recipe"], self.recipe)
        _check_origin(file, state["data"], self.data, self.start)
        self.position = Position(
            state["epoch"],
            state["step"],
            state["losses"],
            state["seconds"],
            state["total_seconds"],
        )
        self.rows = state["rows"]
        self.network.load_state_dict(state["network"])
        self.terms.load_state_dict(state["terms"])
        self.optimizers.load_state_dict(state["optimizers"])

    def last_good(self) -> str:
        """What there is to go back to, for people."""
        state = load_checkpoint(self.folder)
        if state is None:
            return "there is no checkpoint yet"
        return (
            f"the last good checkpoint is of epoch {state['epoch'] + 1}, step {state['step']}, "
            f"in {self.folder / CHECKPOINT}"
        )

    def publish(self, trained: float) -> Card:
        """Write weights and card, the card last; remove the checkpoint.

        trained: when all epochs were done, in seconds of the clock that the run goes by.
        """
        self.keep_proxies()
        weights = self.rounded()
        path = self.folder / WEIGHTS
        write_whole(path, lambda partial: partial.write_bytes(save(weights)))
        self.network.load_state_dict(weights)  # what is scored is what was written
        if self.rows:
            write_reports(self.folder, self.rows)
        if self.network.draws:
            self.draw()
        write_whole(self.folder / IMAGES, self._write_images)
        metrics = self.scored()
        seconds = self.position.total_seconds + time.perf_counter() - trained
        card = Card(
            encoder=self.recipe.encoder,
            network=self.recipe.network,
            classes=self.data.names,
            dim=self.network.dim,
            metric=self.network.metric,
            framing=self.framing,
            weights_sha256=sha256_of(path),
            training=TrainingFacts(
                recipe=self.recipe.to_json(),
                data=_origin(self.data, self.start),
                seed=self.recipe.seed,
                machine=machine(self.device),
                versions=versions(),
                minutes=round(seconds / 60, 2),
                metrics=metrics,
            ),
        )
        card.write(self.folder)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return card

    def rounded(self) -> dict[str, Tensor]:
        """The network's weights as they are written: floats as float16, but for the precise.

        Raises FloatingPointError for some that are too large for that.
        """
        result = {}
        for name, tensor in self.network.state_dict().items():
            rounded = _rounded(name, tensor, self.network.precise).contiguous().cpu()
            if not torch.isfinite(rounded).all():
                largest = tensor.abs().max().item()
                raise FloatingPointError(
                    f"the weights {name} reach {largest:.3g}, which float16 does not hold"
                )
            result[name] = rounded
        return result

    @torch.inference_mode()
    def draw(self) -> None:
        """Write a picture of some images beside what the network draws of them."""
        rows, _ = self._shown(SHOWN)
        images = self.data.images[rows[:SHOWN]]
        self.network.eval()
        with autocast(self.device):
            drawn = self.network.outputs(floats(torch.from_numpy(images).to(self.device))).drawn
        assert drawn is not None
        pixels = drawn.permute(0, 2, 3, 1).float().cpu().numpy()
        draw_reconstructions(self.folder / RECONSTRUCTIONS, images, pixels)

    def _write_images(self, path: Path) -> None:
        """The ids of the images that were trained on, one a line: what a test must leave out."""
        own = [self.data.ids[row] for row in self.data.training.tolist()]
        ids = [*own, *sorted(self.start.ids.difference(own))]
        path.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


def _built(
    network_type: type[Network], settings: Any, data: TrainingSet, framing: Framing
) -> Network:
    try:
        return network_type(settings, len(data.names), framing.side)
    except ValueError as error:
        raise BadInput(
            f"the network cannot be built: {error}; change [network] or data.side"
        ) from None


def _rounded(name: str, tensor: Tensor, precise: frozenset[str]) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and name not in precise else tensor


def seed_of(*place: object) -> int:
    """A seed for this place of a run: any change of the place gives an unrelated one."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _generator(*place: object, device: torch.device | str = "cpu") -> Generator:
    return torch.Generator(device).manual_seed(seed_of(*place))
