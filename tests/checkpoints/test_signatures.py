"""The index of signatures against the libraries themselves.

Their networks are built on the meta device, and with equal weights on equal images.
"""
import gzip
import json
import subprocess
import sys
import time

import pytest
import torch
from helpers.library_shapes import SHARED, shapes

from pwoa_cli.checkpoints import signatures
from pwoa_cli.checkpoints.signatures import Index, Match, Row, lookup, near
from pwoa_cli.errors import PwoaError
from pwoa_cli.networks.build import build

UNIQUE = ["timm:convnext_tiny", "timm:vit_tiny_patch16_384", "timm:swin_tiny_patch4_window7_224",
          "timm:regnetx_002", "timm:mobilenetv3_small_050", "timm:deit_tiny_distilled_patch16_224",
          "timm:vgg11_bn", "timm:resnext26ts"]
FIXED = ["torchvision:squeezenet1_0", "torchvision:mnasnet0_5", "torchvision:vgg11_bn",
         "torchvision:vit_b_16", "torchvision:convnext_tiny", "torchvision:googlenet",
         "torchvision:efficientnet_b0", "torchvision:alexnet"]


@pytest.fixture(scope="module")
def resnet50():
    return shapes("torchvision:resnet50")


def found(answer):
    return [match.names for match in answer.matches]


# --- what it finds ---------------------------------------------------------------

@pytest.mark.parametrize("name", UNIQUE)
def test_a_timm_network_is_found_with_any_number_of_classes_and_channels(name):
    for channels in (3, 1):
        answer = lookup(shapes(name, in_chans=channels))
        assert found(answer) == [(name,)] and answer.matches[0].tells == ""
        assert (answer.prefix, answer.num_classes, answer.in_channels) == ("", 7, channels)


@pytest.mark.parametrize("name", FIXED)
def test_a_torchvision_network_is_found(name):
    answer = lookup(shapes(name))
    assert (found(answer), answer.num_classes) == ([(name,)], 7)


def test_every_way_of_writing_the_same_weights_is_found():
    named = shapes("timm:resnet18")
    without = {k: s for k, s in named.items() if not k.endswith("num_batches_tracked")}
    tensors = {k: torch.empty(s, device="meta") for k, s in named.items()}
    assert len(without) < len(named) and lookup(named) is not None
    assert lookup(named) == lookup(without) == lookup(tensors) == lookup(dict(reversed(named.items())))


def test_weights_without_auxiliary_classifiers_say_how_to_build_them():
    whole = shapes("torchvision:googlenet")
    answer = lookup({k: s for k, s in whole.items() if not k.startswith("aux")})
    assert (found(answer), answer.matches[0].options) == ([("torchvision:googlenet",)], {"aux_logits": False})
    assert lookup(whole).matches[0].options == {}
    built = build(answer.matches[0].names[0], {"num_classes": 7} | answer.matches[0].options)
    assert not [k for k in built.state_dict() if k.startswith("aux")]


def test_networks_with_the_same_keys_are_listed_with_what_tells_them_apart(resnet50):
    plain, average, blur = lookup(resnet50).matches
    assert plain.names == ("torchvision:resnet50", "timm:resnet50")
    assert average.names == ("timm:resnetaa50",) and "AvgPool2d" in average.tells
    assert blur.names == ("timm:resnetblur50",) and "4 BlurPool2d" in blur.tells
    assert "no AvgPool2d" in plain.tells and "no BlurPool2d" in plain.tells


def test_names_of_one_match_compute_the_same_and_matches_do_not():
    answer = lookup(shapes("timm:resnet18"))
    assert found(answer) == [("torchvision:resnet18", "timm:resnet18"), ("timm:resnetblur18",)]
    torch.manual_seed(0)
    state = build("timm:resnet18", {"num_classes": 7}).state_dict()
    x, logits = torch.rand(1, 3, 50, 70), {}
    for name in SHARED[:3]:
        net = build(name, {"num_classes": 7}).eval()
        net.load_state_dict(state)
        with torch.no_grad():
            logits[name] = net(x)
    torch.testing.assert_close(logits["torchvision:resnet18"], logits["timm:resnet18"])
    assert not torch.allclose(logits["timm:resnetblur18"], logits["timm:resnet18"], rtol=0.01)


def test_torchvision_is_not_named_for_images_that_are_not_in_colour():
    answer = lookup(shapes("timm:resnet18", in_chans=1))
    assert found(answer) == [("timm:resnet18",), ("timm:resnetblur18",)] and answer.in_channels == 1
    alexnet = shapes("torchvision:alexnet")
    assert lookup(alexnet | {"features.0.weight": (64, 1, 11, 11)}) is None


@pytest.mark.parametrize(("name", "size"), [
    ("timm:vit_tiny_patch16_384", 384), ("torchvision:inception_v3", 299),
    ("torchvision:efficientnet_b3", 300), ("timm:convnext_tiny", 224)])
def test_the_size_of_images_is_the_librarys(name, size):
    assert lookup(shapes(name)).matches[0].input_size == (size, size)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.model.", "a.b.c.d."])
def test_a_prefix_of_all_keys_is_found(resnet50, prefix):
    answer = lookup({prefix + k: s for k, s in resnet50.items()})
    assert answer.prefix == prefix and answer.matches == lookup(resnet50).matches


def test_a_prefix_of_some_keys_is_not_ours_to_remove(resnet50):
    assert lookup({(k if k.startswith("fc") else "backbone." + k): s for k, s in resnet50.items()}) is None


# --- what it must not find ---------------------------------------------------------------

@pytest.mark.parametrize("change", [
    lambda s: {k.replace("layer4.2.bn3.bias", "layer4.2.bn3.beta"): v for k, v in s.items()},
    lambda s: s | {"layer1.0.conv1.weight": (64, 64, 3, 3)},
    lambda s: s | {"layer1.0.bn1.bias": (64, 1)},
    lambda s: s | {"extra": (1,)},
    lambda s: {k: v for k, v in s.items() if k != "layer1.0.bn1.weight"},
    lambda s: s | {"fc.bias": (8,)},
    lambda s: s | {"fc.bias": (0,), "fc.weight": (0, 2048)},
    lambda s: s | {"fc.bias": ()},
    lambda s: s | {"fc.weight": (7, 2047)},
    lambda s: s | {"conv1.weight": (64, 0, 7, 7)},
    lambda s: s | {"conv1.weight": ()},
])
def test_one_change_and_it_is_another_network(resnet50, change):
    assert lookup(change(resnet50)) is None


@pytest.mark.parametrize("state", [
    {}, {"": ()}, {"num_batches_tracked": ()}, {".": (1,), "..": (2,)}, {"\ud800": (3, 3)},
    {"fc.weight": (0, 0)}, {"\0": (1,)}, {f"a.{i}.weight": (i,) for i in range(5000)},
    {"a." * 4000 + str(i): () for i in range(161)}, {1: torch.tensor(0.0)},
])
def test_any_keys_and_shapes_are_answered(state):
    assert lookup(state) is None and near(state) == []


def test_the_nearest_are_named_with_their_share(resnet50):
    mine = ({k: s for k, s in resnet50.items() if not k.startswith("fc")}
            | {"fc.0.weight": (50, 2048), "fc.0.bias": (50,)})
    for name, share in near(mine):
        theirs = signatures.shapes_of(shapes(name))
        ours = signatures.shapes_of(mine)
        exact = len(ours.items() & theirs.items()) / len(ours.items() | theirs.items())
        assert share == pytest.approx(exact, abs=0.2)  # 16 bins
    assert near(mine)[0][0] == "torchvision:resnet50" and near(mine)[0][1] > 0.9
    assert near({"backbone." + k: s for k, s in mine.items()})[0] == near(mine)[0]


# --- the cost ---------------------------------------------------------------

def test_it_takes_milliseconds_and_imports_no_library(resnet50):
    code = ("import sys, json; from pwoa_cli.checkpoints.signatures import lookup; "
            "answer = lookup(json.load(sys.stdin)); "
            "print(answer.matches[0].names[0], {'timm', 'torchvision'} & sys.modules.keys())")
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(resnet50), capture_output=True,
                          text=True, check=True)
    assert done.stdout.split() == ["torchvision:resnet50", "set()"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        lookup(resnet50)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


# --- the index ---------------------------------------------------------------

def test_another_version_of_a_library_is_told(resnet50, monkeypatch):
    monkeypatch.setattr(signatures, "installed_version", {"timm": "9.9", "torchvision": None}.get)
    versions = signatures.load_index().versions
    assert lookup(resnet50).note == (
        f"the index is of torchvision {versions['torchvision']}, none is installed; "
        f"the index is of timm {versions['timm']}, 9.9 is installed")


def test_the_file_is_small_and_the_same_content_gives_the_same_bytes():
    shipped = signatures.load_index()
    content = signatures.dump(shipped)
    assert len(content) < 100_000 and content == signatures.dump(shipped)
    assert gzip.decompress(content) == gzip.decompress(signatures.INDEX.read_bytes())


@pytest.mark.parametrize("damage", [
    lambda b: b[:-100], lambda b: b"", lambda b: b"<html>", lambda b: b[:5000] + b"\xff" * 9 + b[5009:],
    lambda b: gzip.compress(b"[]"), lambda b: gzip.compress(b"{}"), lambda b: gzip.compress(b'{"format": 2}'),
    lambda b: gzip.compress(gzip.decompress(b).replace(b'"format": 1', b'"format": 1.5')),
    lambda b: gzip.compress(gzip.decompress(b)[:-3]),
    lambda b: gzip.compress(b'{"format": 1, "versions": {}, "ends": [], "rows": [["ff", 1, 0, "00", []]]}'),
    lambda b: gzip.compress(b'{"format": 1, "versions": {}, "ends": [], "rows": [["xx"]]}'),
])
def test_a_damaged_index_is_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "index.json.gz"
    path.write_bytes(damage(signatures.INDEX.read_bytes()))
    with pytest.raises(PwoaError) as caught:
        signatures.load_index(path)
    assert caught.value.message.startswith("The index of architectures index.json.gz is damaged: ")
    assert "pwoa_cli.checkpoints.signatures_build" in caught.value.hint


def test_a_missing_index_is_one_clear_sentence(tmp_path):
    with pytest.raises(PwoaError, match="damaged"):
        signatures.load_index(tmp_path / "none.gz")


# --- its parts ---------------------------------------------------------------

def test_a_tensors_hash_is_that_of_blake2b():
    # printf 'fc.bias\0007' | b2sum -l 64, bytes reversed
    assert signatures.tensor_hash("fc.bias", (7,)) == 0xe60e4869d8210eed
    alike = [("a", (1, 1)), ("a", (11,)), ("a", ()), ("a1", (1,)), ("a", (1,))]
    assert len({signatures.tensor_hash(key, shape) for key, shape in alike}) == 5


def test_sketches_estimate_the_overlap_of_sets():
    hashes = [signatures.tensor_hash(str(i), ()) for i in range(3000)]
    for shared in (0, 500, 900):  # of 1000 in each: Jaccard shared / (2000 - shared)
        equal = []
        for start in range(0, 1000, 50):
            a, b = hashes[start:start + 1000], hashes[start + 1000 - shared:start + 2000 - shared]
            equal += [x == y for x, y in zip(signatures.sketch(a), signatures.sketch(b), strict=True)]
        assert sum(equal) / len(equal) == pytest.approx(shared / (2000 - shared), abs=0.06)  # 320 comparisons


def test_prefixes_are_those_that_all_keys_share():
    assert list(signatures.prefixes({"a.b.c": (), "a.b.d.e": ()})) == ["", "a.", "a.b."]
    assert list(signatures.prefixes({"ab.c": (), "a.c": ()})) == [""]
    assert list(signatures.prefixes({"a.b": ()})) == ["", "a."]


def test_a_count_is_what_all_ends_agree_on():
    ends = [("w", 0, 2), ("b", 0, 1)]
    assert signatures.count(ends, {"w": (14, 5), "b": (7,)}) == 7
    assert signatures.count(ends, {"w": (14, 5)}) is None
    for w, b in (((15, 5), (7,)), ((14, 5), (8,)), ((), (7,)), ((0,), (0,)), ((14, 5), ())):
        assert signatures.count(ends, {"w": w, "b": b}) is None
    assert signatures.count([], {"w": (14, 5)}) is None


def test_dump_and_load_are_inverse(tmp_path):
    matches = (Match(("timm:x",), "1 A", (8, 9), {}), Match(("timm:y",), "no A", None, {"aux": False}))
    row = Row(5, 2, 0, bytes(range(16)), matches)
    index = Index({"timm": "1"}, (((("fc", 0, 1),), ()),), (row,))
    path = tmp_path / "index"
    path.write_bytes(signatures.dump(index))
    assert signatures.load_index(path) == index
