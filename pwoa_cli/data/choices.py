"""What a user says of how a data set is to be read; what is not said is inferred, and that is said."""
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pwoa_cli.errors import InputError


@dataclass(frozen=True)
class Choices:
    """Options of the command line about images and labels; None: to be inferred.

    image_size: (H, W) to which the pictures of a folder are scaled. class_map: a file that names the class
    number of each folder. class_order: "text" or "number", of folders whose names are numbers. labels_from:
    the least label of an .npz file, which becomes class 0. logits: "data" to decide among the classes of
    the test images only, "all" (or None) among all of the model.
    """

    image_size: tuple[int, int] | None = None
    class_map: str | None = None
    class_order: str | None = None
    labels_from: int = 0
    logits: str | None = None

    def check_for_arrays(self, where: str) -> None:
        """Raises: InputError for a choice that is about folders of pictures."""
        for flag, value in (("--image-size", self.image_size), ("--class-map", self.class_map),
                            ("--class-order", self.class_order)):
            if value:
                raise InputError(f"{flag} is for folders of pictures; {where} holds arrays, which are taken "
                                 "as they are.", hint=f"Leave {flag} out.")

    def check_for_folders(self, where: str) -> None:
        """Raises: InputError for a choice that is about arrays."""
        if self.labels_from:
            raise InputError(f"--labels-from is for labels in arrays; {where} holds folders of pictures, "
                             "whose names are the classes.",
                             hint="Leave --labels-from out; --class-map FILE says the number of each folder.")

    def check_nothing_said(self) -> None:
        """Raises: InputError for any choice, where no data is read."""
        for name in self.said():
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} says how --data is read, but no data is read here.",
                             hint=f"Name it: --data NAME|PATH. Or leave {flag} out.")

    def over(self, earlier: "Choices") -> "Choices":
        """With those of an earlier run that are not made here."""
        return replace(earlier, **{name: getattr(self, name) for name in self.said()})

    def said(self) -> dict[str, Any]:
        """Those that were made, for a report; `of_report` is the inverse."""
        return {name: value for name, value in asdict(self).items() if value}


def of_report(said: Mapping[str, Any]) -> Choices:
    """The choices of an earlier run, from the data fields of its report."""
    known = {name: said[name] for name in asdict(Choices()) if name in said}
    size = known.get("image_size")
    return Choices(**known | ({"image_size": (size[0], size[1])} if size else {}))
