"""RetinaFace against the two packages whose weights it takes: same weights, same image, same faces."""

from __future__ import annotations

import face_alignment.detection.retinaface.net_retinaface as mobilenet_package
import numpy as np
import pytest
import torch
from face_alignment.detection.retinaface import FaceDetector as MobileNetDetector
from face_alignment.detection.retinaface.prior_box import PriorBox
from retinaface import box_utils
from retinaface.network import RetinaFace as ResNetPackage
from retinaface.prior_box import priorbox
from retinaface.utils import tensor_from_rgb_image
from torchvision.ops import nms

from models.retinaface import (
    ANCHOR_SIDES_PX,
    STRIDES,
    RetinaFace,
    anchors,
    decode_boxes,
    decode_points,
    encode_boxes,
    encode_points,
)

CPU = torch.device("cpu")
TOLERANCE_PX = 1e-4


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """RGB uint8; neither side is a multiple of the largest stride."""
    return np.random.default_rng(3).integers(0, 256, (200, 232, 3), dtype=np.uint8)


def batch_of(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def calibrated(network: torch.nn.Module, pixels: torch.Tensor) -> torch.nn.Module:
    """Random weights made to speak: batch statistics of an image, and class biases that let some anchors fire."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()
        network(pixels)
        network.eval()
        for head in network.ClassHead:
            head.conv1x1.weight.mul_(2)
            head.conv1x1.bias.copy_(torch.tensor([1.5, 0.0, 0.0, 1.0]))
    return network


@pytest.fixture(scope="module")
def mobilenet(image):
    torch.manual_seed(0)
    return calibrated(mobilenet_package.RetinaFace(), batch_of(image).float() - 120)


@pytest.fixture(scope="module")
def resnet(image):
    torch.manual_seed(0)
    layers = {"layer2": 1, "layer3": 2, "layer4": 3}
    network = ResNetPackage("Resnet50", pretrained=False, in_channels=256, return_layers=layers, out_channels=256)
    return calibrated(network, (batch_of(image).float() - 120) / 60)


def same_weights(backbone: str, network: torch.nn.Module) -> RetinaFace:
    model = RetinaFace(backbone).eval()
    model.load_state_dict(network.state_dict(), strict=True)
    return model


@torch.inference_mode()
def test_mobilenet_finds_the_faces_of_face_alignment(mobilenet, image, tmp_path):
    torch.save(mobilenet.state_dict(), tmp_path / "weights.pth")
    package = MobileNetDetector("cpu", str(tmp_path / "weights.pth"))
    expected = np.array(package.detect_from_image(image[..., ::-1]))  # it takes BGR
    found = same_weights("mobilenet0.25", mobilenet)(batch_of(image))[0]
    assert 20 < len(expected) < 500
    np.testing.assert_allclose(found.boxes, expected[:, :4], atol=TOLERANCE_PX, rtol=0)
    np.testing.assert_allclose(found.scores, expected[:, 4], atol=1e-6)


@torch.inference_mode()
def test_resnet_finds_the_faces_of_retinaface_pytorch(resnet, image):
    height, width = image.shape[:2]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = (image.astype(np.float32) - mean * 255) * np.reciprocal(std * 255)  # albumentations.Normalize
    encoded, logits, encoded_points = resnet(tensor_from_rgb_image(pixels)[None])
    priors = priorbox(list(map(list, ANCHOR_SIDES_PX)), list(STRIDES), False, (height, width))
    boxes = box_utils.decode(encoded[0], priors, [0.1, 0.2]) * torch.tensor([width, height] * 2)
    points = box_utils.decode_landm(encoded_points[0], priors, [0.1, 0.2]) * torch.tensor([width, height] * 5)
    scores = logits[0].softmax(-1)[:, 1]
    is_face = scores > 0.7
    kept = nms(boxes[is_face], scores[is_face], 0.4)

    found = same_weights("resnet50", resnet)(batch_of(image), score_threshold=0.7, nms_iou=0.4)[0]
    assert 20 < len(kept) < 500
    torch.testing.assert_close(found.boxes, boxes[is_face][kept], atol=TOLERANCE_PX, rtol=0)
    torch.testing.assert_close(found.points.flatten(1), points[is_face][kept], atol=TOLERANCE_PX, rtol=0)
    torch.testing.assert_close(found.scores, scores[is_face][kept], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_images_of_a_batch_do_not_meet_in_suppression(mobilenet, image):
    model = same_weights("mobilenet0.25", mobilenet)
    empty = np.full_like(image, 120)
    alone = model(batch_of(image))[0]
    together = model(batch_of(image, empty, image))
    assert [len(faces.scores) for faces in together] == [
        len(alone.scores),
        len(model(batch_of(empty))[0].scores),
        len(alone.scores),
    ]
    for faces in (together[0], together[2]):
        torch.testing.assert_close(faces.boxes, alone.boxes, atol=1e-3, rtol=0)
        assert (faces.scores.diff() <= 0).all()


@torch.inference_mode()
def test_no_face_is_an_empty_result(mobilenet, image):
    faces = same_weights("mobilenet0.25", mobilenet)(batch_of(image), score_threshold=1.0)[0]
    assert faces.boxes.shape == (0, 4)
    assert faces.scores.shape == (0,)
    assert faces.points.shape == (0, 5, 2)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (200, 232), (31, 97)])
def test_anchors_equal_both_packages(height, width):
    ours = anchors(height, width, device=CPU)
    assert torch.equal(ours, PriorBox(mobilenet_package.cfg_mnet, (height, width)).forward())
    assert torch.equal(ours, priorbox(list(map(list, ANCHOR_SIDES_PX)), list(STRIDES), False, (height, width)))
    if height == 512:
        assert len(ours) == 10_752


def test_anchors_made_in_inference_serve_training():
    anchors.cache_clear()
    with torch.inference_mode():
        anchors(64, 64, device=CPU)
    encoded = torch.zeros(len(anchors(64, 64, device=CPU)), 4, requires_grad=True)
    decode_boxes(encoded, anchors(64, 64, device=CPU)).sum().backward()
    assert encoded.grad is not None


def test_encoding_by_hand():
    anchor = torch.tensor([[0.5, 0.5, 0.25, 0.125]])
    box = torch.tensor([[0.5, 0.25, 1.0, 0.5]])  # centre (0.75, 0.375), sides (0.5, 0.25)
    log2 = float(np.log(2)) / 0.2
    torch.testing.assert_close(encode_boxes(box, anchor), torch.tensor([[10.0, -10.0, log2, log2]]))
    torch.testing.assert_close(decode_boxes(encode_boxes(box, anchor), anchor), box)
    points = torch.tensor([[[0.5, 0.5], [0.75, 0.375], [0.0, 0.0], [1.0, 1.0], [0.5, 0.75]]])
    assert encode_points(points, anchor)[0, 2:4].tolist() == pytest.approx([10.0, -10.0])
    torch.testing.assert_close(decode_points(encode_points(points, anchor), anchor), points)


def test_gradient_reaches_every_parameter(image):
    model = RetinaFace().train()
    raw = model.raw(batch_of(image))
    sum(values.square().mean() for values in raw).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=r"resnet18.*expected mobilenet0.25 or resnet50"):
        RetinaFace("resnet18")
