"""Images that are decoded on demand equal those that are kept in memory."""

import pytest
import torch
from image_files import encode, pixels, store, store_edm
from test_stream import SEED, assert_same, attached, joined, take

from warm_lightning.data import ImageFolder
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import UserError


@pytest.fixture(params=["folder", "zip"])
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_and_validation_see_the_same_bits(tmp_path, kind, num_workers):
    (tmp_path / "held").mkdir()
    train = store_edm(tmp_path, [pixels(16) for _ in range(30)], [i % 3 for i in range(30)], kind)
    held = store_edm(tmp_path / "held", [pixels(16, 1) for _ in range(11)], [i % 3 for i in range(11)], kind)

    def loaders(**options):
        data = attached(ImageFolder(train, held, batch_size=8, xflip=True, **options), 16)
        return data.train_dataloader(), data.val_dataloader()

    lazily = loaders(cache=False, num_workers=num_workers)
    for memory, files in zip(loaders(), lazily, strict=True):
        # 12 batches of 8: more than a pass over 30 images and their mirror images.
        assert_same(joined(take(memory, 12)), joined(take(files, 12)))


@pytest.mark.parametrize("colours", [[1, 1, 1], [1, 3, 1], [3, 1, 1]])
def test_grey_and_colour_as_in_memory(tmp_path, kind, colours):
    files = {f"{i}.png": encode(pixels(8, channels)) for i, channels in enumerate(colours)}
    path = store(tmp_path, files, kind)
    memory, lazily = (ImageFolder(path, cache=cache).train_images() for cache in (True, False))
    assert lazily.shape == memory.shape
    assert torch.equal(lazily.take(torch.tensor([2, 0, 1, 0])), memory.take(torch.tensor([2, 0, 1, 0])))
    assert torch.equal(lazily.as_tensor(), memory.images)


def test_nothing_is_decoded_until_it_is_asked_for(tmp_path, kind):
    files = {f"{i}.png": encode(pixels(8)) for i in range(3)}
    data = ImageFolder(store(tmp_path, files | {"2.png": files["2.png"][:-40]}, kind), cache=False)
    data.setup("test")
    data.train_images().take(torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"2\.png.* is not a readable image"):
        data.train_images().take(torch.tensor([2]))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("which", ["truncated", "size", "depth"])
def test_a_bad_image_is_named_by_whichever_process_meets_it(tmp_path, num_workers, which):
    bad = {
        "truncated": encode(pixels(8))[:-40],
        "size": encode(pixels(9)),
        "depth": encode(pixels(8, 1).astype("uint16")),
    }
    path = store(tmp_path, {f"{i}.png": encode(pixels(8)) for i in range(4)} | {"2.png": bad[which]}, "zip")
    with pytest.raises(UserError) as memory:
        ImageFolder(path).train_images()
    data = attached(ImageFolder(path, cache=False, batch_size=4, num_workers=num_workers))
    with pytest.raises(UserError) as lazily:
        take(data.train_dataloader(), 1)
    assert str(lazily.value) == str(memory.value)


def test_the_stream_of_stored_images_may_be_written_to(tmp_path):
    images = ImageFolder(store(tmp_path, {"1.png": encode(pixels())}, "zip"), cache=False).train_images()
    before = images.as_tensor()
    TrainingStream(images, SEED)[range(2)].images.zero_()
    assert torch.equal(images.as_tensor(), before)
