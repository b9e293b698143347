"""Corrupt images in the 15 common ways of Hendrycks and Dietterich 2019, at five severities, deterministic by key.

Kinds and parameters are theirs (arXiv:1903.12261, and their programs make_cifar_c.py and make_imagenet_c.py); the code
is our own, and differs: frost is drawn instead of photographed, the pixels of glass blur are displaced and not
swapped in turn, zooms are centered exactly, fog is drawn by its spectrum, and values are rounded instead of truncated.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable

import numpy as np
import scipy  # its parts are imported on first use
from PIL import Image

from imago.seeding import random_bits

SEVERITIES = range(1, 6)
# Arguments of the methods of `_Images` at severity 1 to 5: for images of 32 px (CIFAR-10-C); of 224 px (ImageNet-C).
_ARGUMENTS = """
gaussian_noise: 0.04, 0.06, 0.08, 0.09, 0.1; 0.08, 0.12, 0.18, 0.26, 0.38
shot_noise: 500, 250, 100, 75, 50; 60, 25, 12, 5, 3
impulse_noise: 0.01, 0.02, 0.03, 0.05, 0.07; 0.03, 0.06, 0.09, 0.17, 0.27
defocus_blur: 0.3 0.4, 0.4 0.5, 0.5 0.6, 1 0.2, 1.5 0.1; 3 0.1, 4 0.5, 6 0.5, 8 0.5, 10 0.5
glass_blur: 0.05 1 1, 0.25 1 1, 0.4 1 1, 0.25 1 2, 0.4 1 2; 0.7 1 2, 0.9 2 1, 1 2 3, 1.1 3 2, 1.5 4 2
motion_blur: 6 1, 6 1.5, 6 2, 8 2, 9 2.5; 10 3, 15 5, 15 8, 15 12, 20 15
zoom_blur: 1.05 0.01, 1.1 0.01, 1.15 0.01, 1.2 0.01, 1.25 0.01; 1.1 0.01, 1.15 0.01, 1.2 0.02, 1.24 0.02, 1.3 0.03
snow: 0.1 0.2 1 0.6 8 3 0.95, 0.1 0.2 1 0.5 10 4 0.9, 0.15 0.3 1.75 0.55 10 4 0.9, 0.25 0.3 2.25 0.6 12 6 0.85, \
 0.3 0.3 1.25 0.65 14 12 0.8; 0.1 0.3 3 0.5 10 4 0.8, 0.2 0.3 2 0.5 12 4 0.7, 0.55 0.3 4 0.9 12 8 0.7, \
 0.55 0.3 4.5 0.85 12 8 0.65, 0.55 0.3 2.5 0.85 12 12 0.55
frost: 1 0.2, 1 0.3, 0.9 0.4, 0.85 0.4, 0.75 0.45; 1 0.4, 0.8 0.6, 0.7 0.7, 0.65 0.7, 0.6 0.75
fog: 0.2 3, 0.5 3, 0.75 2.5, 1 2, 1.5 1.75; 1.5 2, 2 2, 2.5 1.7, 2.5 1.5, 3 1.4
brightness: 0.05, 0.1, 0.15, 0.2, 0.3; 0.1, 0.2, 0.3, 0.4, 0.5
contrast: 0.75, 0.5, 0.4, 0.3, 0.15; 0.4, 0.3, 0.2, 0.1, 0.05
elastic_transform: 0 0 2.56, 1.6 6.4 2.24, 2.56 1.92 1.92, 3.2 1.28 1.6, 3.2 0.96 0.96; \
 488 170.8 24.4, 488 19.52 48.8, 12.2 2.44 4.88, 17.08 2.44 4.88, 29.28 2.44 4.88
pixelate: 0.95, 0.9, 0.85, 0.75, 0.65; 0.6, 0.5, 0.4, 0.3, 0.25
jpeg_compression: 80, 65, 58, 50, 40; 25, 18, 15, 10, 7
"""
_TABLES = {  # float (2, 5, arguments) by name
    name: np.array([[row.split() for row in size.split(",")] for size in rows.split(";")], float)
    for name, rows in (line.split(":") for line in _ARGUMENTS.strip().splitlines())
}
CORRUPTIONS = tuple(_TABLES)


def corrupt(images: np.ndarray, name: str, severity: int, keys: np.ndarray) -> np.ndarray:
    """Corrupt images uint8 (N, 3, H, W); each result depends on its image and key only, and not on the others.

    Between 32 px and 224 px of the shorter side, the parameters are interpolated linearly in its logarithm; beyond,
    they are those of the end. `severity` is 1 to 5; `keys` are those of the random draws of each image, uint64 (N,).
    """
    small, large = _TABLES[name][:, severity - 1]
    arguments = small + np.clip(math.log(min(images.shape[2:]) / 32, 224 / 32), 0, 1) * (large - small)
    own = _Images(images / np.float32(255), random_bits(keys, CORRUPTIONS.index(name), severity))
    return np.rint(255 * np.clip(getattr(own, name)(*arguments.tolist()), 0, 1)).astype(np.uint8)


class _Images:
    """Images, float32 (N, 3, H, W) in [0, 1], with a method for each corruption; draws are float64 (N, *shape)."""

    def __init__(self, images: np.ndarray, keys: np.ndarray) -> None:
        self.images, self.keys, self.parts, self.size = images, keys, itertools.count(), images.shape[2:]

    def draw(self, *shape: int) -> np.ndarray:
        bits = random_bits(self.keys[:, None], next(self.parts), np.arange(math.prod(shape)))
        return (((bits >> np.uint64(12)) + 0.5) * 2.0**-52).reshape(len(self.keys), *shape)

    def normal(self, *shape: int) -> np.ndarray:
        return scipy.special.ndtri(self.draw(*shape)).astype(np.float32)

    def gaussian_noise(self, std: float) -> np.ndarray:
        return self.images + np.float32(std) * self.normal(3, *self.size)

    def shot_noise(self, num_photons: float) -> np.ndarray:
        # Poisson numbers by inversion: a sorted table has the cumulative probabilities of counts for all 256 values.
        counts = np.arange(int(num_photons + 10 * math.sqrt(num_photons) + 10))  # the probability of more is < 1e-16
        values, pixels = np.arange(256)[:, None], np.rint(255 * self.images).astype(np.int64)
        table = values + scipy.special.pdtr(counts, values / 255 * num_photons)
        found = np.searchsorted(table.ravel(), pixels + self.draw(3, *self.size)) - pixels * len(counts)
        return found / num_photons

    def impulse_noise(self, share: float) -> np.ndarray:
        return np.where((drawn := self.draw(3, *self.size)) < share, drawn < share / 2, self.images)

    def defocus_blur(self, radius: float, edge_std: float) -> np.ndarray:
        line, edge_px = np.arange(-int(radius) - 2, int(radius) + 3), 1 if radius <= 8 else 2
        disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
        kernel = scipy.ndimage.gaussian_filter(disk / disk.sum(), edge_std, mode="constant", radius=edge_px)
        return _convolve(self.images, kernel[None, None])

    def glass_blur(self, std: float, reach: float, repetitions: float) -> np.ndarray:
        (height, width), pixels = self.size, _blur(self.images, std).reshape(*self.images.shape[:2], -1)
        for _ in range(round(repetitions)):
            shifts = np.floor((2 * self.draw(2, height, width) - 1) * round(reach)).astype(int)
            rows, columns = np.moveaxis(shifts + np.mgrid[:height, :width], 1, 0)
            places = np.clip(rows, 0, height - 1) * width + np.clip(columns, 0, width - 1)
            pixels = np.take_along_axis(pixels, places.reshape(len(pixels), 1, -1), 2)
        return _blur(pixels.reshape(self.images.shape), std)

    def motion_blur(self, radius: float, std: float, low: float = -45) -> np.ndarray:
        angles = np.radians(low + 90 * self.draw(1))  # along half a Gaussian in this direction, as ImageMagick does
        steps = np.arange(min(2 * round(radius), math.ceil(4 * std)) + 1)
        weights, end = np.exp(-(steps**2) / (2 * std**2)), steps[-1]
        kernels, numbers = np.zeros((len(self.keys), 2 * end + 1, 2 * end + 1)), np.arange(len(self.keys))[:, None]
        rows, columns = (end - np.rint(steps * part).astype(int) for part in (np.sin(angles), np.cos(angles)))
        np.add.at(kernels, (numbers, rows, columns), weights / weights.sum())  # steps may share a pixel
        return _convolve(self.images, kernels[:, None])

    def zoom_blur(self, largest: float, step: float) -> np.ndarray:
        zooms = (1 + step * np.arange(round((largest - 1) / step) + 1)).tolist()
        return (self.images + sum(_zoom(self.images, zoom) for zoom in zooms)) / (len(zooms) + 1)

    def snow(self, mean: float, std: float, zoom: float, threshold: float, *other: float) -> np.ndarray:
        radius, motion_std, share = other
        flakes = _zoom(mean + std * self.normal(1, *self.size), zoom)
        flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
        flakes = _Images(flakes, ~self.keys).motion_blur(radius, motion_std, -135)
        gray = np.einsum("nchw,c->nhw", self.images, [0.299, 0.587, 0.114])[:, None]  # ITU-R BT.601
        whitened = share * self.images + (1 - share) * np.maximum(self.images, 1.5 * gray + 0.5)
        return whitened + flakes + flakes[..., ::-1, ::-1]

    def plasma(self, decay: float) -> np.ndarray:
        # Smooth noise, float32 (N, 1, H, W) from 0 to 1; each octave has the amplitude of the one before / `decay`.
        frequencies = np.hypot(scipy.fft.fftfreq(self.size[0])[:, None], scipy.fft.rfftfreq(self.size[1]))
        frequencies[0, 0] = np.inf
        spectrum = scipy.fft.rfft2(self.normal(1, *self.size)) * frequencies ** -(math.log2(decay) + 1)
        plasma = scipy.fft.irfft2(spectrum.astype(np.complex64), self.size)
        plasma -= plasma.min(axis=(2, 3), keepdims=True)
        return plasma / plasma.max(axis=(2, 3), keepdims=True)

    def frost(self, image_weight: float, frost_weight: float) -> np.ndarray:
        # Crystals along the ridges of rough noise, where smooth noise is high; numbers of our own choice.
        crystals, cover = (1 - np.abs(2 * self.plasma(1.5) - 1)) ** 2, self.plasma(2.0)
        return image_weight * self.images + frost_weight * (0.2 + 0.8 * crystals * cover + 0.3 * cover**3)

    def fog(self, amount: float, decay: float) -> np.ndarray:
        brightest = self.images.max(axis=(1, 2, 3), keepdims=True)
        return (self.images + amount * self.plasma(decay**2)) * brightest / (brightest + amount)  # squared by them, too

    def brightness(self, added: float) -> np.ndarray:
        value = self.images.max(axis=1, keepdims=True)  # of HSV, whose hue and saturation stay; black becomes gray
        is_black = (value == 0).astype(np.float32)
        return (self.images + is_black) * np.minimum(value + np.float32(added), 1) / (value + is_black)

    def contrast(self, factor: float) -> np.ndarray:
        return factor * self.images + (1 - factor) * self.images.mean(axis=(2, 3), keepdims=True)

    def elastic_transform(self, amplitude: float, std: float, corner_shift: float) -> np.ndarray:
        height, width = self.size  # an affine transform moves three corners at random, then smooth noise each pixel
        corners = np.array([height // 2, width // 2]) + min(self.size) // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
        moved = np.insert(corners + (2 * self.draw(3, 2) - 1) * corner_shift, 2, 1, axis=2)
        affine = np.linalg.solve(moved, np.broadcast_to(corners.astype(float), moved[..., :2].shape))  # (N, 3, 2)
        grid = amplitude * _blur(2 * self.draw(2, *self.size) - 1, std) + np.mgrid[:height, :width]
        places = np.moveaxis(np.moveaxis(grid, 1, -1) @ affine[:, None, :2] + affine[:, None, 2:], -1, 1)
        sample = functools.partial(scipy.ndimage.map_coordinates, order=1, mode="mirror")
        return np.array([[sample(c, at) for c in image] for image, at in zip(self.images, places, strict=True)])

    def pixelate(self, scale: float) -> np.ndarray:
        whole, box = self.size[::-1], Image.Resampling.BOX
        small = max(1, int(whole[0] * scale)), max(1, int(whole[1] * scale))
        return self.change(lambda image: image.resize(small, box).resize(whole, box))

    def jpeg_compression(self, quality: float) -> np.ndarray:
        def compress(image: Image.Image) -> Image.Image:
            image.save(content := io.BytesIO(), "JPEG", quality=round(quality))
            return Image.open(content)

        return self.change(compress)

    def change(self, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        pixels = np.rint(255 * self.images).astype(np.uint8).transpose(0, 2, 3, 1)
        changed = [np.asarray(function(Image.fromarray(image))) for image in pixels]
        return np.stack(changed).transpose(0, 3, 1, 2) / np.float32(255)


def _convolve(images: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Convolve with kernels (1 or N, 1, K, K) of odd side and sum 1; images are reflected at their borders."""
    margin = kernels.shape[-1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), "reflect")
    return scipy.signal.fftconvolve(padded.astype(np.float32), kernels.astype(np.float32), "valid", axes=(2, 3))


def _blur(images: np.ndarray, std: float) -> np.ndarray:
    """Blur (..., H, W) with a Gaussian, by a matrix for each axis: as fast for a large `std` as for a small one."""
    identities = (np.eye(side, dtype=np.float32) for side in images.shape[-2:])
    down, across = (scipy.ndimage.gaussian_filter1d(identity, max(std, 1e-3), axis=0) for identity in identities)
    return down @ images @ across.T


def _zoom(images: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of images (..., H, W), interpolated linearly."""
    for axis, side in ((-2, images.shape[-2]), (-1, images.shape[-1])):
        at = (np.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2
        before = np.minimum(at.astype(int), side - 2)
        weight = (at - before).astype(np.float32).reshape((-1, 1) if axis == -2 else -1)
        images = images.take(before, axis) * (1 - weight) + images.take(before + 1, axis) * weight
    return images
