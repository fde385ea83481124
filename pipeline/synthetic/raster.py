"""Compiled kernels: normals, a z-buffer with triangle indices, depth from a light, and deferred shading.

Space: x to the right of the image, y down, z away from the viewer; metres. Screen: px, pixel centres at integers.
"""

# V vertices, F triangles, H height, W width
# ruff: noqa: PLR0912, PLR0915, PLR1714, SIM109, RUF046  (compiled loops are long, and numba lacks sets and integer math)
from __future__ import annotations

import math

import numba as nb
import numpy as np

SKIN, EYE_RIGHT, EYE_LEFT, MOUTH, TONGUE, TEETH, FRAME, LENS = range(8)
"""Materials of triangles."""

_jit = nb.njit(cache=True, fastmath=True, nogil=True)


@_jit
def blend(points: np.ndarray, weights: np.ndarray, offsets: np.ndarray, step: float) -> None:
    """Add the weighted sum of offsets, int16 (N, V, 3) in units of `step`, to float32 points (V, 3) in place."""
    flat, rows = points.reshape(-1), offsets.reshape(offsets.shape[0], -1)
    for n in range(rows.shape[0]):
        weight = np.float32(weights[n] * step)
        if weight != 0:
            for i in range(rows.shape[1]):
                flat[i] += weight * rows[n, i]


@_jit
def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return area-weighted outward unit normals (V, 3) of float32 points (V, 3)."""
    out = np.zeros_like(points)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            i = faces[f, k]
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(out.shape[0]):
        n = 1.0 / (math.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2) + 1e-12)
        out[i, 0] *= n
        out[i, 1] *= n
        out[i, 2] *= n
    return out


@_jit
def rasterize(screen, faces, is_two_sided, triangle, weights, depth):
    """Find the nearest triangle of each pixel.

    screen float32 (V, 3): x px, y px, depth; faces int32 (F, 3); is_two_sided bool (F,). Written in place: triangle
    int32 (H, W), unchanged where nothing is drawn; weights float32 (H, W, 2) of the first two corners; depth (H, W).
    """
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1, x2, y2 = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0 or (area > 0 and not is_two_sided[f]):
            continue
        left, right = max(0, math.ceil(min(x0, x1, x2))), min(width - 1, math.floor(max(x0, x1, x2)))
        top, bottom = max(0, math.ceil(min(y0, y1, y2))), min(height - 1, math.floor(max(y0, y1, y2)))
        if left > right or top > bottom:
            continue
        inv = 1.0 / area
        z0, z1, z2 = screen[a, 2], screen[b, 2], screen[c, 2]
        step0, step1 = (y1 - y2) * inv, (y2 - y0) * inv
        for y in range(top, bottom + 1):
            w0 = ((x1 - left) * (y2 - y) - (x2 - left) * (y1 - y)) * inv
            w1 = ((x2 - left) * (y0 - y) - (x0 - left) * (y2 - y)) * inv
            for x in range(left, right + 1):
                w2 = 1.0 - w0 - w1
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    z = w0 * z0 + w1 * z1 + w2 * z2
                    if z < depth[y, x]:
                        depth[y, x] = z
                        triangle[y, x] = f
                        weights[y, x, 0] = w0
                        weights[y, x, 1] = w1
                w0 += step0
                w1 += step1


@_jit
def rasterize_depth(screen, faces, depth):
    """Write the nearest depth of each pixel into `depth` (H, W); triangles are two-sided."""
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1, x2, y2 = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        left, right = max(0, math.ceil(min(x0, x1, x2))), min(width - 1, math.floor(max(x0, x1, x2)))
        top, bottom = max(0, math.ceil(min(y0, y1, y2))), min(height - 1, math.floor(max(y0, y1, y2)))
        if area == 0 or left > right or top > bottom:
            continue
        inv = 1.0 / area
        z0, z1, z2 = screen[a, 2], screen[b, 2], screen[c, 2]
        step0, step1 = (y1 - y2) * inv, (y2 - y0) * inv
        for y in range(top, bottom + 1):
            w0 = ((x1 - left) * (y2 - y) - (x2 - left) * (y1 - y)) * inv
            w1 = ((x2 - left) * (y0 - y) - (x0 - left) * (y2 - y)) * inv
            for x in range(left, right + 1):
                w2 = 1.0 - w0 - w1
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    z = w0 * z0 + w1 * z1 + w2 * z2
                    depth[y, x] = min(depth[y, x], z)
                w0 += step0
                w1 += step1


@_jit
def lit_fraction(px, py, pz, axes, shadow, scale, centre, radius, bias):
    """Return the lit fraction of a point's surroundings, from 3 x 3 comparisons `radius` texels apart."""
    size = shadow.shape[0]
    x = (axes[0, 0] * px + axes[0, 1] * py + axes[0, 2] * pz - centre[0]) * scale + size * 0.5
    y = (axes[1, 0] * px + axes[1, 1] * py + axes[1, 2] * pz - centre[1]) * scale + size * 0.5
    z = axes[2, 0] * px + axes[2, 1] * py + axes[2, 2] * pz - bias
    corners = 0
    for dy in (-1, 1):
        for dx in (-1, 1):
            corners += _is_lit(shadow, x + dx * radius, y + dy * radius, z)
    if corners in (0, 4):
        return corners * 0.25
    for dy, dx in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
        corners += _is_lit(shadow, x + dx * radius, y + dy * radius, z)
    return corners / 9.0


@_jit
def _is_lit(shadow, x, y, z):
    ix, iy = int(x + 0.5), int(y + 0.5)
    size = shadow.shape[0]
    return 1 if ix < 0 or iy < 0 or ix >= size or iy >= size or z <= shadow[iy, ix] else 0


@_jit
def _lobe(cosine, power):
    """Approximate cosine ** power, for highlights."""
    c = max(0.0, cosine)
    return c / (power - power * c + c)


@_jit
def hashed(a, b):
    """Return a pseudo-random number in [0, 1) from two integers."""
    h = (a * 374761393 + b * 668265263) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFFFF) / 16777216.0


@_jit
def shade(
    triangle,
    weights,
    faces,
    material,
    points,
    normals,
    attributes,
    texture,
    canvas,
    cover,
    up,
    light,
    axes,
    shadow,
    shadow_scale,
    shadow_centre,
    shadow_radius,
    shadow_bias,
    eyes,
    eye_look,
    cloth,
    cloth_look,
    looks,
):
    """Colour each drawn pixel of `canvas`, float32 linear RGB (H, W, 3); `cover` (H, W) becomes 1 there.

    points, normals float32 (V, 3) in camera space; attributes (V, 7): u, v, occlusion, cloth distance, rest x y z.
    texture (T, T, 5): linear RGB, gloss, height. up (3,): the head's up. light (9, 3): key direction (towards the
    light), key, fill direction, fill, ambient (constant, x, y, z), rim. eyes (2, 6): centre and gaze of each eye;
    eye_look (4, 3): iris, sclera, (iris radius rad, pupil radius rad, wetness), rim. cloth (T2, T2, 3). cloth_look:
    scale. looks (8, 3): colour of each other material.
    """
    height, width = triangle.shape
    size = texture.shape[0]
    kx, ky, kz = light[0, 0], light[0, 1], light[0, 2]
    fx, fy, fz = light[2, 0], light[2, 1], light[2, 2]
    for y in range(height):
        for x in range(width):
            f = triangle[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            w0, w1 = weights[y, x, 0], weights[y, x, 1]
            w2 = 1.0 - w0 - w1
            nx = w0 * normals[a, 0] + w1 * normals[b, 0] + w2 * normals[c, 0]
            ny = w0 * normals[a, 1] + w1 * normals[b, 1] + w2 * normals[c, 1]
            nz = w0 * normals[a, 2] + w1 * normals[b, 2] + w2 * normals[c, 2]
            px = w0 * points[a, 0] + w1 * points[b, 0] + w2 * points[c, 0]
            py = w0 * points[a, 1] + w1 * points[b, 1] + w2 * points[c, 1]
            pz = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
            ao = w0 * attributes[a, 2] + w1 * attributes[b, 2] + w2 * attributes[c, 2]
            inv = 1.0 / (math.sqrt(px * px + py * py + pz * pz) + 1e-9)
            vx, vy, vz = -px * inv, -py * inv, -pz * inv
            kind = material[f]
            r, g, bl = 0.0, 0.0, 0.0
            gloss, power, wrap_r, wrap_gb = 0.0, 20.0, 0.1, 0.1
            glint = 0.0
            if kind == SKIN:
                dist = w0 * attributes[a, 3] + w1 * attributes[b, 3] + w2 * attributes[c, 3]
                if dist > 0:
                    rx = w0 * attributes[a, 4] + w1 * attributes[b, 4] + w2 * attributes[c, 4]
                    ry = w0 * attributes[a, 5] + w1 * attributes[b, 5] + w2 * attributes[c, 5]
                    rz = w0 * attributes[a, 6] + w1 * attributes[b, 6] + w2 * attributes[c, 6]
                    n2 = cloth.shape[0]
                    i = int(math.floor((ry + 0.35 * rz) * cloth_look)) % n2
                    j = int(math.floor((rx + 0.35 * rz) * cloth_look)) % n2
                    seam = 0.55 + 0.45 * min(1.0, dist * 250.0)
                    if dist < 0.016:
                        seam *= 0.9
                    r, g, bl = cloth[i, j, 0] * seam, cloth[i, j, 1] * seam, cloth[i, j, 2] * seam
                    ao = 0.3 + 0.7 * ao
                else:
                    u0, u1, u2 = attributes[a, 0], attributes[b, 0], attributes[c, 0]
                    if max(u0, u1, u2) - min(u0, u1, u2) > 0.5:
                        u0 += 1.0 if u0 < 0.5 else 0.0
                        u1 += 1.0 if u1 < 0.5 else 0.0
                        u2 += 1.0 if u2 < 0.5 else 0.0
                    tx = (w0 * u0 + w1 * u1 + w2 * u2) * size - 0.5
                    ty = (w0 * attributes[a, 1] + w1 * attributes[b, 1] + w2 * attributes[c, 1]) * size - 0.5
                    ty = min(max(ty, 0.0), size - 1.001)
                    ix, iy = int(math.floor(tx)), int(ty)
                    ax, ay = tx - ix, ty - iy
                    ix = ix % size
                    jx = ix + 1 if ix + 1 < size else 0
                    q00, q10 = (1 - ax) * (1 - ay), ax * (1 - ay)
                    q01, q11 = (1 - ax) * ay, ax * ay
                    jy = iy + 1
                    r = (
                        texture[iy, ix, 0] * q00
                        + texture[iy, jx, 0] * q10
                        + texture[jy, ix, 0] * q01
                        + texture[jy, jx, 0] * q11
                    )
                    g = (
                        texture[iy, ix, 1] * q00
                        + texture[iy, jx, 1] * q10
                        + texture[jy, ix, 1] * q01
                        + texture[jy, jx, 1] * q11
                    )
                    bl = (
                        texture[iy, ix, 2] * q00
                        + texture[iy, jx, 2] * q10
                        + texture[jy, ix, 2] * q01
                        + texture[jy, jx, 2] * q11
                    )
                    gloss = (
                        texture[iy, ix, 3] * q00
                        + texture[iy, jx, 3] * q10
                        + texture[jy, ix, 3] * q01
                        + texture[jy, jx, 3] * q11
                    )
                    h00, h10, h01, h11 = texture[iy, ix, 4], texture[iy, jx, 4], texture[jy, ix, 4], texture[jy, jx, 4]
                    hu = ((h10 - h00) * (1 - ay) + (h11 - h01) * ay) * size
                    hv = ((h01 - h00) * (1 - ax) + (h11 - h10) * ax) * size
                    level = h00 * q00 + h10 * q10 + h01 * q01 + h11 * q11
                    # tangents along the texture's rows and columns
                    sx, sy, sz = up[1] * nz - up[2] * ny, up[2] * nx - up[0] * nz, up[0] * ny - up[1] * nx
                    n = 1.0 / (math.sqrt(sx * sx + sy * sy + sz * sz) + 1e-6)
                    sx, sy, sz = sx * n, sy * n, sz * n
                    dx, dy, dz = ny * sz - nz * sy, nz * sx - nx * sz, nx * sy - ny * sx
                    nx -= hu * sx + hv * dx
                    ny -= hu * sy + hv * dy
                    nz -= hu * sz + hv * dz
                    if level < 0:
                        dark = max(0.3, 1.0 + 170.0 * level)
                        r, g, bl = r * (0.2 + 0.8 * dark), g * dark, bl * dark
                        gloss *= dark
                    wrap_r, wrap_gb = 0.38, 0.2
                    power = 14.0 + 30.0 * gloss
            elif kind == EYE_RIGHT or kind == EYE_LEFT:
                e = 0 if kind == EYE_RIGHT else 1
                ex, ey, ez = px - eyes[e, 0], py - eyes[e, 1], pz - eyes[e, 2]
                n = 1.0 / (math.sqrt(ex * ex + ey * ey + ez * ez) + 1e-9)
                ex, ey, ez = ex * n, ey * n, ez * n
                nx, ny, nz = ex, ey, ez
                cosine = ex * eyes[e, 3] + ey * eyes[e, 4] + ez * eyes[e, 5]
                angle = math.acos(min(1.0, max(-1.0, cosine)))
                iris, pupil = eye_look[2, 0], eye_look[2, 1]
                if angle < iris * 1.06:
                    # around the gaze, in fortieths of a turn
                    qx, qy = ex - cosine * eyes[e, 3], ey - cosine * eyes[e, 4]
                    turn = int((math.atan2(qy, qx) / math.pi + 1.0) * 26.0)
                    streak = 0.72 + 0.55 * hashed(turn, 7) + 0.25 * hashed(turn, int(angle * 40))
                    ring = min(1.0, max(0.0, (iris - angle) / (0.22 * iris)))
                    inner = min(1.0, max(0.0, (angle - pupil) / 0.035))
                    k = streak * (0.25 + 0.75 * ring) * inner * (1.25 - 0.5 * angle / iris)
                    edge = min(1.0, max(0.0, (angle - iris * 0.97) / (iris * 0.09)))
                    r = (eye_look[0, 0] * k + 0.004) * (1 - edge) + eye_look[1, 0] * 0.55 * edge
                    g = (eye_look[0, 1] * k + 0.004) * (1 - edge) + eye_look[1, 1] * 0.55 * edge
                    bl = (eye_look[0, 2] * k + 0.004) * (1 - edge) + eye_look[1, 2] * 0.55 * edge
                else:
                    away = min(1.0, (angle - iris) / 0.9)
                    r = eye_look[1, 0] * (1.0 - 0.12 * away)
                    g = eye_look[1, 1] * (1.0 - 0.32 * away)
                    bl = eye_look[1, 2] * (1.0 - 0.34 * away)
                lid = ex * up[0] + ey * up[1] + ez * up[2]
                ao = (0.42 + 0.58 * ao) * (1.0 - 0.75 * min(1.0, max(0.0, (lid - 0.12) / 0.38)))
                gloss, power = 1.0, 220.0
                glint = eye_look[2, 2]
            else:
                r, g, bl = looks[kind, 0], looks[kind, 1], looks[kind, 2]
                if kind == TEETH:
                    gloss, power = 0.35, 60.0
                    wrap_r, wrap_gb = 0.4, 0.35
                    ao = 0.4 + 0.6 * ao
                    rx = w0 * attributes[a, 4] + w1 * attributes[b, 4] + w2 * attributes[c, 4]
                    gap = abs((rx * 118.0) - math.floor(rx * 118.0) - 0.5) * 2.0
                    k = 0.55 + 0.45 * min(1.0, (1.0 - gap) * 7.0)
                    r, g, bl = r * k, g * k, bl * k
                elif kind == TONGUE:
                    gloss, power = 0.4, 40.0
                elif kind == FRAME:
                    gloss, power = 0.8, 50.0
                elif kind == LENS:
                    gloss, power = 1.2, 160.0
            n = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9)
            nx, ny, nz = nx * n, ny * n, nz * n
            facing = nx * vx + ny * vy + nz * vz
            if facing < 0 and kind >= MOUTH:
                nx, ny, nz, facing = -nx, -ny, -nz, -facing
            lit = 1.0
            ndl = nx * kx + ny * ky + nz * kz
            if ndl > -0.4:
                slope = shadow_bias * (1.0 + 2.2 * (1.0 - max(0.0, ndl)))
                lit = lit_fraction(px, py, pz, axes, shadow, shadow_scale, shadow_centre, shadow_radius, slope)
                if kind == TEETH:
                    lit = 0.4 + 0.6 * lit
            wet_lit = lit
            diff_r = max(0.0, (ndl + wrap_r) / (1.0 + wrap_r))
            diff_gb = max(0.0, (ndl + wrap_gb) / (1.0 + wrap_gb))
            cavity = 0.45 + 0.55 * ao
            diff_r *= (0.06 + 0.94 * lit) * cavity if kind == SKIN else lit * ao
            diff_gb *= lit * cavity if kind == SKIN else lit * ao
            fill = max(0.0, (nx * fx + ny * fy + nz * fz) * 0.75 + 0.25) * ao
            ao_r = math.sqrt(ao) if kind == SKIN else ao
            amb_r = light[4, 0] + light[5, 0] * nx + light[6, 0] * ny + light[7, 0] * nz
            amb_g = light[4, 1] + light[5, 1] * nx + light[6, 1] * ny + light[7, 1] * nz
            amb_b = light[4, 2] + light[5, 2] * nx + light[6, 2] * ny + light[7, 2] * nz
            r *= light[1, 0] * diff_r + light[3, 0] * fill + max(0.0, amb_r) * ao_r
            g *= light[1, 1] * diff_gb + light[3, 1] * fill + max(0.0, amb_g) * ao
            bl *= light[1, 2] * diff_gb + light[3, 2] * fill + max(0.0, amb_b) * ao
            if gloss > 0:
                hx, hy, hz = kx + vx, ky + vy, kz + vz
                n = 1.0 / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
                shine = _lobe((nx * hx + ny * hy + nz * hz) * n, power) ** 2 * (power + 8.0) / 70.0
                fresnel = 0.05 + 0.95 * (1.0 - min(1.0, max(0.0, facing))) ** 5
                shine = shine * wet_lit * gloss * (0.09 + 0.5 * fresnel) * min(1.0, max(0.0, ndl * 4.0 + 0.3))
                hx, hy, hz = fx + vx, fy + vy, fz + vz
                n = 1.0 / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
                second = _lobe((nx * hx + ny * hy + nz * hz) * n, power) ** 2 * gloss * ao * 0.12
                sheen = fresnel * gloss * 0.25 * ao
                r += shine * light[1, 0] + second * light[3, 0] + sheen * max(0.0, amb_r)
                g += shine * light[1, 1] + second * light[3, 1] + sheen * max(0.0, amb_g)
                bl += shine * light[1, 2] + second * light[3, 2] + sheen * max(0.0, amb_b)
                if glint > 0:
                    # reflection of a studio window
                    mx, my = 2.0 * facing * nx - vx, 2.0 * facing * ny - vy
                    if abs(mx - kx * 0.6) < 0.13 and abs(my + 0.42) < 0.16:
                        r += glint * light[1, 0]
                        g += glint * light[1, 1]
                        bl += glint * light[1, 2]
            if kind == SKIN:
                rim = (1.0 - min(1.0, max(0.0, facing))) ** 4 * (0.3 + 0.7 * ao) * min(1.0, 0.15 + 3.0 * gloss)
                r += rim * light[8, 0]
                g += rim * light[8, 1]
                bl += rim * light[8, 2]
            canvas[y, x, 0] = r
            canvas[y, x, 1] = g
            canvas[y, x, 2] = bl
            cover[y, x] = 1.0


@_jit
def shade_hair(
    triangle,
    weights,
    faces,
    points,
    normals,
    attributes,
    depth,
    skin_depth,
    canvas,
    cover,
    texture,
    strands,
    up,
    light,
    axes,
    shadow,
    shadow_scale,
    shadow_centre,
    shadow_radius,
    shadow_bias,
    colour,
    look,
):
    """Blend hair over `canvas` where it is nearer than the skin.

    attributes (V, 6): u, v (density texture), across, along (strand texture), occlusion, density to add.
    texture (T, T): density, hair where positive. strands (S, S): brightness. colour (2, 3): dark and light
    strands. look: shine, contrast, softness.
    """
    height, width = triangle.shape
    size, n_strand = texture.shape[0], strands.shape[0]
    kx, ky, kz = light[0, 0], light[0, 1], light[0, 2]
    for y in range(height):
        for x in range(width):
            f = triangle[y, x]
            if f < 0 or depth[y, x] > skin_depth[y, x]:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            w0, w1 = weights[y, x, 0], weights[y, x, 1]
            w2 = 1.0 - w0 - w1
            u0, u1, u2 = attributes[a, 0], attributes[b, 0], attributes[c, 0]
            s0, s1, s2 = attributes[a, 2], attributes[b, 2], attributes[c, 2]
            if max(u0, u1, u2) - min(u0, u1, u2) > 0.5:
                u0 += 1.0 if u0 < 0.5 else 0.0
                u1 += 1.0 if u1 < 0.5 else 0.0
                u2 += 1.0 if u2 < 0.5 else 0.0
            tx = (w0 * u0 + w1 * u1 + w2 * u2) * size
            ty = (w0 * attributes[a, 1] + w1 * attributes[b, 1] + w2 * attributes[c, 1]) * size
            density = texture[min(size - 1, max(0, int(ty))), int(tx) % size]
            density += w0 * attributes[a, 5] + w1 * attributes[b, 5] + w2 * attributes[c, 5]
            if max(s0, s1, s2) - min(s0, s1, s2) > 0.5:
                s0 += 1.0 if s0 < 0.5 else 0.0
                s1 += 1.0 if s1 < 0.5 else 0.0
                s2 += 1.0 if s2 < 0.5 else 0.0
            sx = (w0 * s0 + w1 * s1 + w2 * s2) * n_strand
            sy = (w0 * attributes[a, 3] + w1 * attributes[b, 3] + w2 * attributes[c, 3]) * n_strand
            strand = strands[int(sy) % n_strand, int(sx) % n_strand]
            alpha = min(1.0, max(0.0, (density + (strand - 0.5) * look[2]) / (0.3 * look[2] + 0.01)))
            if alpha <= 0.02:
                continue
            nx = w0 * normals[a, 0] + w1 * normals[b, 0] + w2 * normals[c, 0]
            ny = w0 * normals[a, 1] + w1 * normals[b, 1] + w2 * normals[c, 1]
            nz = w0 * normals[a, 2] + w1 * normals[b, 2] + w2 * normals[c, 2]
            px = w0 * points[a, 0] + w1 * points[b, 0] + w2 * points[c, 0]
            py = w0 * points[a, 1] + w1 * points[b, 1] + w2 * points[c, 1]
            pz = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
            ao = w0 * attributes[a, 4] + w1 * attributes[b, 4] + w2 * attributes[c, 4]
            n = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9)
            nx, ny, nz = nx * n, ny * n, nz * n
            inv = 1.0 / (math.sqrt(px * px + py * py + pz * pz) + 1e-9)
            vx, vy, vz = -px * inv, -py * inv, -pz * inv
            if nx * vx + ny * vy + nz * vz < 0:
                nx, ny, nz = -nx, -ny, -nz
            along = -(up[0] * nx + up[1] * ny + up[2] * nz)
            dx, dy, dz = -up[0] - along * nx, -up[1] - along * ny, -up[2] - along * nz
            length = math.sqrt(dx * dx + dy * dy + dz * dz)  # 0 at the crown, where strands have no direction
            n = 1.0 / (length + 1e-6)
            dx, dy, dz = dx * n, dy * n, dz * n
            ndl = nx * kx + ny * ky + nz * kz
            lit = lit_fraction(px, py, pz, axes, shadow, shadow_scale, shadow_centre, shadow_radius, shadow_bias * 3.0)
            diff = max(0.0, (ndl + 0.3) / 1.3) * lit
            hx, hy, hz = kx + vx, ky + vy, kz + vz
            n = 1.0 / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
            tilt = (dx * hx + dy * hy + dz * hz) * n + (strand - 0.5) * 0.35
            shine = (
                _lobe(math.sqrt(max(0.0, 1.0 - tilt * tilt)), 40.0) ** 2
                * look[0]
                * length
                * length
                * lit
                * max(0.0, ndl * 0.7 + 0.3)
                * strand
            )
            k = 1.0 + (strand - 0.5) * 2.0 * look[1]
            mix = min(1.0, max(0.0, strand))
            for q in range(3):
                amb = light[4, q] + light[5, q] * nx + light[6, q] * ny + light[7, q] * nz
                base = (colour[0, q] * (1.0 - mix) + colour[1, q] * mix) * k
                value = base * (light[1, q] * diff + light[3, q] * 0.4 * ao + max(0.0, amb) * ao)
                value += shine * light[1, q] * (0.5 * base / (colour[1, q] + 1e-4) * colour[1, q] * 3.0 + 0.02)
                canvas[y, x, q] = canvas[y, x, q] * (1.0 - alpha) + value * alpha
            cover[y, x] = max(cover[y, x], alpha)


@_jit
def composite(canvas: np.ndarray, part: np.ndarray, cover: np.ndarray, top: int, left: int) -> None:
    """Blend `part` (h, w, 3) over `canvas` at (top, left), in place, where cover (h, w) > 0, with soft borders."""
    height, width = cover.shape
    for y in range(height):
        for x in range(width):
            if cover[y, x] > 0:
                total = 0.0
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        total += cover[min(height - 1, max(0, y + dy)), min(width - 1, max(0, x + dx))]
                alpha = min(1.0, total * (1.15 / 9.0))
                for k in range(3):
                    behind = canvas[top + y, left + x, k]
                    canvas[top + y, left + x, k] = behind + (part[y, x, k] - behind) * alpha


@_jit
def develop(linear, gains, curve, vignette, tile, offset_y, offset_x, noise, out):
    """Convert linear RGB (H, W, 3) to uint8: white balance, vignette, noise, tone curve.

    curve (4096,): 0..255 over half the square root of light, where a sensor's noise is uniform. tile (N, N, 3): noise
    of standard deviation 1.
    """
    height, width, _ = linear.shape
    n = tile.shape[0]
    last = curve.shape[0] - 1
    cy, cx = (height - 1) * 0.5, (width - 1) * 0.5
    for y in range(height):
        for x in range(width):
            d = ((y - cy) * (y - cy) + (x - cx) * (x - cx)) / (cy * cy + cx * cx)
            fall = 1.0 - vignette * d
            i, j = (y + offset_y) % n, (x + offset_x) % n
            for k in range(3):
                v = max(0.0, linear[y, x, k] * gains[k] * fall)
                s = math.sqrt(v) + tile[i, j, k] * noise
                q = int(min(1.0, max(0.0, s * 0.5)) * last + 0.5)
                w = curve[q] + 0.5
                out[y, x, k] = int(min(255.0, max(0.0, w)))
