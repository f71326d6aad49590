"""Images of other channels than the network's: grey to three channels, colour to grey, and that it was
done."""
from torch import Tensor

from pwoa_cli.data.formats import Images, Raw


def fitted(raw: Raw, channels: int | None) -> tuple[Raw, tuple[str, ...]]:
    """(arrays with the channels of a network where 1 and 3 can be made of each other, what is said of it).

    Args: channels: None: they stay as they are.
    """
    own = raw.x_test.shape[1]
    if (own, channels) not in ((1, 3), (3, 1)):
        return raw, ()
    words = ("grey images are repeated to 3 channels" if own == 1 else
             "images in colour are made grey")
    return (raw._replace(x_train=_converted(raw.x_train), x_test=_converted(raw.x_test)),
            (f"{words}, as the network takes {channels}",))


def _converted(images: Images) -> Images:
    """(N, 3, H, W) of grey images, without a copy; (N, 1, H, W) luma (ITU-R 601-2) of images in colour."""
    from torchvision.transforms.functional import rgb_to_grayscale

    assert isinstance(images, Tensor)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else rgb_to_grayscale(images)
