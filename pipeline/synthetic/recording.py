"""One rendered subject in front of a camera: frames with their truth, as a function of settings and AU schedule."""

# K tasks, T frames of a sequence, A action units
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.synthetic.backgrounds import sample_background
from pipeline.synthetic.bank import Bank
from pipeline.synthetic.camera import Camera, Lens, sample_light
from pipeline.synthetic.expressions import Expression, expression
from pipeline.synthetic.identity import Identity, sample_identity
from pipeline.synthetic.layout import Settings, subject_names
from pipeline.synthetic.render import FaceTruth, render_face


@dataclass(frozen=True, eq=False)
class Frame:
    """An image, RGB uint8 (H, W, 3), its truth, and intensities 0..1 by action unit."""

    image: np.ndarray
    truth: FaceTruth
    intensities: Mapping[int, float]


class Recording:
    """One subject who shows the intensities `plan` (K, T, A) in one session: a fixed identity and camera."""

    def __init__(self, bank: Bank, settings: Settings, index: int, plan: np.ndarray) -> None:
        self.index = index
        self._bank, self._settings, self._plan = bank, settings, plan
        rng = np.random.default_rng([settings.seed, 1, index])
        is_man = subject_names(settings.layout, index + 1)[index].startswith("M")
        gender = float(is_man) if settings.layout == "bp4d" else None
        self._identity = sample_identity(bank, rng, texture_px=512, gender=gender, is_face_clear=True)
        self._camera = _sample_session(rng, settings.size_px)
        self._asymmetry = float(np.clip(rng.normal(0, 0.1), -0.3, 0.3))
        self._rest_tilt = rng.normal(0, [4.0, 4.0, 2.5])

    def frames(self, task: int) -> Iterator[Frame]:
        """Yield the frames of a task in order of time."""
        rng = np.random.default_rng([self._settings.seed, 2, self.index, task])
        aus = list(self._settings.rates)
        speaks = rng.random() < 0.2
        tilt = self._rest_tilt + rng.normal(0, [5.0, 3.0, 2.0])
        drift = rng.normal(0, [5.0, 3.5, 2.5])
        phase = rng.uniform(0, 2 * np.pi, 3)
        light = self._camera.light * np.exp(rng.normal(0, 0.05)).astype(np.float32)
        light[0] = self._camera.light[0]
        light[2] = self._camera.light[2]
        for t, row in enumerate(self._plan[task]):
            intensities = {au: float(value) for au, value in zip(aus, row, strict=True)}
            at = (t + 0.5) / len(self._plan[task])
            yaw, pitch, roll = tilt + drift * np.sin(2.5 * at + phase)
            camera = replace(
                self._camera, yaw_deg=float(yaw), pitch_deg=float(pitch), roll_deg=float(roll), light=light
            )
            face = _sample_expression(
                self._bank, self._identity, intensities, rng, speaks=speaks, asymmetry=self._asymmetry
            )
            image, truth = render_face(self._bank, self._identity, face, camera, rng, size_px=self._settings.size_px)
            yield Frame(image, truth, intensities)


def _sample_expression(
    bank: Bank,
    identity: Identity,
    intensities: Mapping[int, float],
    rng: np.random.Generator,
    *,
    speaks: bool,
    asymmetry: float,
) -> Expression:
    """Sample the person's expression of the intensities, with unlabelled gaze, blinks and speech."""
    shown = dict(intensities)
    closed = max(shown.get(23, 0.0), shown.get(24, 0.0))
    for au in (25, 26):  # pressed lips stay closed
        if closed and au in shown:
            shown[au] *= max(0.0, 1 - 1.6 * closed)
    gaze = float(rng.normal(0, 7)), float(rng.normal(0, 4))
    blink = float(rng.uniform(0.5, 1)) if rng.random() < 0.05 else float(rng.uniform(0, 0.08))
    extra = {}
    talk = rng.random(3)
    if speaks and closed < 0.3:
        extra = {"jawOpen": 0.22 * float(talk[0]), "mouthFunnel": 0.3 * float(talk[1]) * (talk[2] < 0.5)}
    return expression(
        bank,
        shown,
        strength=identity.strength,
        asymmetry=asymmetry + float(rng.normal(0, 0.07)),
        extra=extra,
        gaze_deg=gaze,
        blink=blink,
    )


def _sample_session(rng: np.random.Generator, size_px: int) -> Camera:
    """Sample the camera, light and background of a subject's session."""
    light = sample_light(rng)
    lens = Lens(
        gains=np.exp(rng.normal(0, 0.14) + rng.normal(0, [0.04, 0.01, 0.05])).astype(np.float32),
        contrast=float(np.clip(rng.normal(1.05, 0.1), 0.85, 1.3)),
        defocus_px=float(rng.uniform(0.45, 0.9)) * size_px / 512,
        vignette=float(rng.uniform(0, 0.15)),
        noise=float(rng.uniform(0.002, 0.009)),
    )
    return Camera(
        yaw_deg=0.0,
        pitch_deg=0.0,
        roll_deg=0.0,
        light=light,
        lens=lens,
        centre_frac=(float(rng.uniform(0.43, 0.57)), float(rng.uniform(0.45, 0.58))),
        face_frac=float(rng.uniform(0.38, 0.54)),
        distance_m=float(rng.uniform(0.9, 2.2)),
        body_turn=float(rng.uniform(0.1, 0.6)),
        shadow_softness=float(rng.uniform(1.0, 3.0)),
        background=sample_background(rng, size_px),
    )
