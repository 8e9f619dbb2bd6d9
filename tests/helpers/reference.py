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
    if abs(total) < eps:
        total = -eps if total < 0 else eps
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


def amounts(padding):
    """Zeros (before, after) of each axis; a single number stands for both."""
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def conv2d(x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, bias=None):
    padding = amounts(padding)
    n, _, height, width = x.shape
    c2, per_group, kh, kw = weight.shape
    out_h = (height + sum(padding[0]) - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + sum(padding[1]) - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, c2, out_h, out_w))
    for o in range(c2):
        first = o // (c2 // groups) * per_group
        for i in range(out_h):
            for j in range(out_w):
                for a in range(kh):
                    for b in range(kw):
                        row = i * stride[0] - padding[0][0] + a * dilation[0]
                        col = j * stride[1] - padding[1][0] + b * dilation[1]
                        if 0 <= row < height and 0 <= col < width:
                            y[:, o, i, j] += x[:, first : first + per_group, row, col] @ weight[o, :, a, b]
    return y if bias is None else y + bias[:, None, None]


def batch_norm(x, mean, var, gamma, beta, eps):
    """BN in eval mode."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = gamma[c] * (x[:, c] - mean[c]) / math.sqrt(var[c] + eps) + beta[c]
    return y


def centred_mean(x, out_size, kernel, stride, padding, dilation):
    """Mean of stride x stride positions around each window's centre; what lies outside does not count."""
    y = np.zeros((*x.shape[:2], *out_size))
    starts = []
    for axis in (0, 1):
        centre = -amounts(padding)[axis][0] + dilation[axis] * (kernel[axis] - 1) / 2
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
    """Eq. 5-9.

    ``weights`` holds squeeze_up, gwc and pwc1, squeeze_low and perhaps pwc2, each a kernel
    or (kernel, bias); one of the two branches may be missing. Inner norms: norm_up, norm1,
    norm_low, norm2, each the arguments of :func:`batch_norm`.
    """
    window = (stride, padding, dilation)

    def conv(name, x, *args):
        weight, bias = weights[name] if isinstance(weights[name], tuple) else (weights[name], None)
        return conv2d(x, weight, *args, bias=bias)

    def norm(name, x):
        return batch_norm(x, *weights[name]) if name in weights else x

    branches = []
    if 'gwc' in weights:
        kernel = weights['gwc'].shape[2:]
        x_up = norm('norm_up', conv('squeeze_up', x[:, :up]))
        gwc = conv('gwc', x_up, *window, groups)
        branches.append(norm('norm1', gwc + conv('pwc1', centred_mean(x_up, gwc.shape[2:], kernel, *window))))
    if 'squeeze_low' in weights:
        kernel = weights['gwc'].shape[2:] if 'gwc' in weights else weights['kernel_size']
        # The size that a convolution with this window gives.
        size = conv2d(x[:1, :1], np.zeros((1, 1, *kernel)), *window).shape[2:]
        y2 = x_low = norm('norm_low', conv('squeeze_low', centred_mean(x[:, up:], size, kernel, *window)))
        if 'pwc2' in weights:
            y2 = np.concatenate([conv('pwc2', x_low), x_low], axis=1)
        branches.append(norm('norm2', y2))
    if len(branches) == 1:
        return branches[0]
    y1, y2 = branches
    out = np.empty_like(y1)
    for n in range(y1.shape[0]):
        for c in range(y1.shape[1]):
            beta1 = 1 / (1 + math.exp(y2[n, c].mean() - y1[n, c].mean()))
            out[n, c] = beta1 * y1[n, c] + (1 - beta1) * y2[n, c]
    return out


def weights_of(cru):
    """Return the weights of a CRU by the names that ``cru`` takes them by."""
    names = ('squeeze_up', 'gwc', 'pwc1', 'squeeze_low', 'pwc2')
    modules = {name: getattr(cru, name) for name in names}
    return {name: m.weight.detach().numpy() for name, m in modules.items() if m is not None}


def of_sru(module, x):
    """Return what the module ``SRU`` should make of ``x``, in float64."""
    gamma, beta = (p.detach().double().numpy() for p in (module.gn.weight, module.gn.bias))
    return sru(
        x.detach().double().numpy(), module.gn.num_groups, gamma, beta, module.threshold, module.gate, module.gn.eps
    )
