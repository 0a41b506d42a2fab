"""The training order against its definition, and the same stream however it is shared out or interrupted."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.data.stream import StreamSampler, TrainingStream
from warm_lightning.distributed import strided_batches
from warm_lightning.errors import UserError
from warm_lightning.rng import key
from warm_lightning.types import Batch

SEED = 5


def numbered(n: int) -> ImageSet:
    """Images of which each differs from every other and from every mirror image; label i for image i."""
    images = torch.randint(256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n), tuple(map(str, range(n))))


class Numbered(ImageDataModule):
    """`numbered` as a data set."""

    def __init__(self, n: int, held_out: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": n, "held_out": held_out}

    def load(self, split: str) -> ImageSet | None:
        return numbered(self.sizes[split]) if self.sizes[split] else None


def attached(data: Numbered, images_seen=0, *, rank=0, world_size=1, accumulate=1) -> Numbered:
    """The data set with what it asks of a Trainer."""
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(seed=SEED, images_seen=images_seen),
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
    )
    return data


def take(loader, n: int) -> list[Batch]:
    return list(islice(iter(loader), n))


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def assert_same(a: Batch, b: Batch) -> None:
    for name, x, y in zip(Batch._fields, a, b, strict=True):
        assert torch.equal(x, y), name


def by_definition(image_set: ImageSet, seed: int, xflip: bool, position: int) -> tuple[Tensor, int]:
    """Image and label at a position, from the definition, one at a time."""
    n = len(image_set)
    length = 2 * n if xflip else n
    generator = torch.Generator().manual_seed(key(seed, "order", position // length))
    entry = torch.randperm(length, generator=generator).tolist()[position % length]
    image = image_set.images[entry % n]
    return (image[..., [3, 2, 1, 0]] if entry >= n else image), entry % n


@pytest.mark.parametrize("xflip", [False, True])
def test_the_stream_is_what_the_definition_says(xflip):
    images = numbered(7)
    # 40 positions: within a pass, over its end, and (without mirroring) over several ends in one batch.
    batch = TrainingStream(images, SEED, xflip)[range(3, 43)]
    assert batch.positions.tolist() == list(range(3, 43))
    for k, position in enumerate(range(3, 43)):
        image, label = by_definition(images, SEED, xflip, position)
        assert torch.equal(batch.images[k], image)
        assert batch.labels[k] == label


def test_each_pass_shows_each_image_once_in_another_order():
    stream = TrainingStream(numbered(50), SEED)
    passes = [stream[range(50 * e, 50 * e + 50)].labels.tolist() for e in range(4)]
    assert all(sorted(labels) == list(range(50)) for labels in passes)
    assert len({tuple(labels) for labels in passes}) == 4


def test_xflip_shows_each_image_once_as_it_is_and_once_mirrored():
    images = numbered(20)
    batch = TrainingStream(images, SEED, xflip=True)[range(40, 80)]
    shown = Counter(image.numpy().tobytes() for image in batch.images)
    plain = [image.numpy().tobytes() for image in images.images]
    mirrored = [image.numpy()[:, :, ::-1].tobytes() for image in images.images]
    assert shown == Counter(plain + mirrored)


def test_a_batch_never_writes_to_the_images():
    images = numbered(20)
    before = images.images.clone()
    batch = TrainingStream(images, SEED, xflip=True)[range(40)]
    batch.images.zero_()
    assert torch.equal(images.images, before)


def test_seeds_give_different_orders():
    images = numbered(100)
    orders = {tuple(TrainingStream(images, seed)[range(100)].labels.tolist()) for seed in range(10)}
    assert len(orders) == 10


@pytest.mark.parametrize("xflip", [False, True])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (2, 3), (4, 2)])
def test_devices_and_accumulation_share_out_the_same_batches(world_size, accumulate, xflip):
    def loader(rank, world_size, accumulate):
        data = Numbered(30, batch_size=24, xflip=xflip)
        return attached(data, 48, rank=rank, world_size=world_size, accumulate=accumulate).train_dataloader()

    whole = take(loader(0, 1, 1), 3)
    ranks = [take(loader(rank, world_size, accumulate), 3 * accumulate) for rank in range(world_size)]
    assert {len(batch.images) for batches in ranks for batch in batches} == {24 // world_size // accumulate}
    assert_same(joined(whole), TrainingStream(numbered(30), SEED, xflip)[range(48, 120)])
    for n in range(3):
        micro = range(n * accumulate, (n + 1) * accumulate)
        assert_same(joined([ranks[rank][j] for j in micro for rank in range(world_size)]), whole[n])


@pytest.mark.parametrize("images_seen", [8, 56, 1000])
def test_a_resumed_run_goes_on_where_it_was(images_seen):
    straight = take(attached(Numbered(30, batch_size=8)).train_dataloader(), images_seen // 8 + 5)
    resumed = take(attached(Numbered(30, batch_size=8), images_seen).train_dataloader(), 5)
    assert_same(joined(resumed), joined(straight[images_seen // 8 :]))


def test_the_sampler_asks_for_its_start_whenever_iteration_begins():
    seen = 0
    sampler = StreamSampler(lambda: seen, micro_batch=4, rank=1, world_size=2)
    assert list(islice(sampler, 2)) == [range(4, 8), range(12, 16)]
    seen = 16
    assert next(iter(sampler)) == range(20, 24)


def test_worker_processes_change_nothing():
    def loaders(num_workers):
        data = attached(Numbered(30, held_out=11, batch_size=8, xflip=True, num_workers=num_workers), 16)
        return data.train_dataloader(), data.val_dataloader()

    for own, workers in zip(loaders(0), loaders(2), strict=True):
        a, b = take(own, 12), take(workers, 12)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert type(y) is Batch
            assert_same(x, y)


def test_the_training_loader_is_endless_and_leaves_the_global_generator_alone():
    loader = attached(Numbered(5, batch_size=4)).train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    state = torch.get_rng_state()
    assert len(take(loader, 50)) == 50
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("held_out", [0, 17])
def test_validation_shows_each_image_once_over_all_devices(world_size, held_out):
    n = held_out or 25
    shown = []
    for rank in range(world_size):
        data = attached(Numbered(25, held_out, batch_size=6), rank=rank, world_size=world_size)
        batches = list(data.val_dataloader())
        assert {len(batch.images) for batch in batches[:-1]} == {6 // world_size}
        shown.append(joined(batches))
    together = joined(shown)
    assert sorted(together.positions.tolist()) == list(range(n))
    assert torch.equal(together.images, numbered(n).images[together.positions])
    assert torch.equal(together.labels, together.positions)


def test_strided_batches_keep_the_short_one():
    assert strided_batches(range(5), 2) == [range(0, 2), range(2, 4), range(4, 5)]
    assert [list(r) for r in strided_batches(range(10), 3, rank=1, world_size=2)] == [[1, 3, 5], [7, 9]]


def test_validation_needs_no_trainer_and_training_says_that_it_does():
    data = Numbered(4)
    assert len(next(iter(data.val_dataloader())).images) == 4
    with pytest.raises(UserError, match="Trainer"):
        data.train_dataloader()


class Recorder(LightningModule):
    """Notes the positions it is shown, and counts images per optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seed, self.images_seen = SEED, 0
        self.labels: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, _) -> Tensor:
        self.labels += batch.labels.tolist()
        self.positions = batch.positions
        return self.weight * batch.images.float().mean()

    def on_train_batch_end(self, *_) -> None:
        self.images_seen = int(self.positions[-1]) + 1

    def validation_step(self, batch: Batch, _) -> None:
        self.validated += batch.positions.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# The images are in memory: workers have nothing to do that would be worth a process.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_trains_along_the_stream_over_epochs_and_accumulation(tmp_path):
    model, data = Recorder(), Numbered(30, held_out=7, batch_size=8)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=4,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    # 3 epochs of 4 micro-batches of 8/2 images.
    assert model.labels == TrainingStream(numbered(30), SEED)[range(48)].labels.tolist()
    assert model.validated == list(range(7)) * 3


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_is_read():
    data = attached(Numbered(30, batch_size=10), world_size=2, accumulate=2)
    data.load = lambda split: pytest.fail("read")
    with pytest.raises(UserError, match=r"^batch_size 10 .* 2 devices × 2 .*multiple of 4$"):
        data.setup("fit")


def test_a_batch_larger_than_the_data_is_refused_only_for_training():
    data = Numbered(30, batch_size=31)
    with pytest.raises(UserError, match=r"^batch_size 31 is more than the 30 training images"):
        data.setup("fit")
    data.setup("test")
    assert (data.resolution, data.image_channels, data.num_classes) == (4, 3, 30)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": -8}, {"num_workers": -1}])
def test_sizes_below_what_makes_sense_are_refused(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(UserError, match=f"^{name} must be at least [01], not {value}$"):
        Numbered(30, **arguments)
