"""SRU, CRU and SCConv once more, in float64 numpy loops read straight from Eq. 1-9.

Shares no code with the package: the definition of correct for the tests.
Arrays are (N, C, H, W); weights are passed in as arrays.
"""

import math

import numpy as np


def group_norm(x, groups, gamma, beta, eps):
    n, c = x.shape[:2]
    out = np.empty_like(x)
    for i in range(n):
        for g in range(groups):
            part = slice(g * c // groups, (g + 1) * c // groups)
            mu, var = x[i, part].mean(), x[i, part].var()
            out[i, part] = (x[i, part] - mu) / math.sqrt(var + eps)
        for j in range(c):
            out[i, j] = gamma[j] * out[i, j] + beta[j]
    return out


def sru_weights(x, groups, gamma, beta, eps):
    """W of Eq. 3 before the gate."""
    gn = group_norm(x, groups, gamma, beta, eps)
    w = np.empty_like(x)
    total = float(np.sum(gamma))
    for j in range(x.shape[1]):
        w[:, j] = 1 / (1 + np.exp(-gamma[j] / total * gn[:, j]))
    return w


def sru(x, groups, gamma, beta, threshold=0.5, gate='soft', eps=1e-5):
    w = sru_weights(x, groups, gamma, beta, eps)
    out = np.zeros_like(x)
    half = x.shape[1] // 2
    for index, weight in np.ndenumerate(w):
        n, c, i, j = index
        if weight > threshold:
            w1, w2 = 1.0, 0.0
        else:
            w1, w2 = (weight, weight) if gate == 'soft' else (0.0, 1.0)
        other = c + half if c < half else c - half
        out[n, c, i, j] += w1 * x[index]
        out[n, other, i, j] += w2 * x[index]
    return out


def conv2d(x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    n, _, height, width = x.shape
    c2, per_group, kh, kw = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, c2, out_h, out_w))
    for o in range(c2):
        first = o // (c2 // groups) * per_group
        for i in range(out_h):
            for j in range(out_w):
                for a in range(kh):
                    for b in range(kw):
                        row = i * stride[0] - padding[0] + a * dilation[0]
                        col = j * stride[1] - padding[1] + b * dilation[1]
                        if 0 <= row < height and 0 <= col < width:
                            y[:, o, i, j] += x[:, first : first + per_group, row, col] @ weight[o, :, a, b]
    return y


def centred_mean(x, out_size, kernel, stride, padding, dilation):
    """Mean of stride x stride positions around each window's centre; what lies outside does not count."""
    y = np.zeros((*x.shape[:2], *out_size))
    starts = []
    for axis in (0, 1):
        centre = -padding[axis] + dilation[axis] * (kernel[axis] - 1) / 2
        starts.append(math.trunc(centre - (stride[axis] - 1) / 2))
    for i in range(out_size[0]):
        for j in range(out_size[1]):
            inside = [
                x[:, :, row, col]
                for row in range(starts[0] + i * stride[0], starts[0] + (i + 1) * stride[0])
                for col in range(starts[1] + j * stride[1], starts[1] + (j + 1) * stride[1])
                if 0 <= row < x.shape[2] and 0 <= col < x.shape[3]
            ]
            if inside:
                y[:, :, i, j] = sum(inside) / len(inside)
    return y


def cru(x, weights, up, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=2):
    """Eq. 5-9 without inner norms; ``weights`` holds squeeze_up, gwc, pwc1, squeeze_low and perhaps pwc2."""
    kernel = weights['gwc'].shape[2:]
    x_up = conv2d(x[:, :up], weights['squeeze_up'])
    gwc = conv2d(x_up, weights['gwc'], stride, padding, dilation, groups)
    window = (gwc.shape[2:], kernel, stride, padding, dilation)
    y1 = gwc + conv2d(centred_mean(x_up, *window), weights['pwc1'])
    x_low = conv2d(centred_mean(x[:, up:], *window), weights['squeeze_low'])
    y2 = x_low
    if 'pwc2' in weights:
        y2 = np.concatenate([conv2d(x_low, weights['pwc2']), x_low], axis=1)
    out = np.empty_like(y1)
    for n in range(y1.shape[0]):
        for c in range(y1.shape[1]):
            e1, e2 = math.exp(y1[n, c].mean()), math.exp(y2[n, c].mean())
            out[n, c] = e1 / (e1 + e2) * y1[n, c] + e2 / (e1 + e2) * y2[n, c]
    return out
