"""One training step over R ranks as it is usually written, simulated in one process: each way is one function that
does what R processes would do, so that nothing but the named mistake differs from the exact computation.

Every way returns (loss, objective): the loss that a user sees, and the scalar whose gradient reaches the optimiser
after the ranks' gradients are added or averaged as that way has it. Rows of a mini-batch: N in all, X their
features (N, 64), Z the BatchFormer's output.
"""

import torch
import torch.nn.functional as F


def encoder_layer(m, x, keys):
    """torch.nn.TransformerEncoderLayer with the attention's keys and values from other rows than its queries."""
    a = m.self_attn(x.unsqueeze(1), keys.unsqueeze(1), keys.unsqueeze(1), need_weights=False)[0].squeeze(1)
    h = m.norm1(x + a)
    return m.norm2(h + m.linear2(F.relu(m.linear1(h))))


def both_streams(net, x, z, y, offset):
    """Mean cross entropy of both streams' rows through the one classifier."""
    return F.cross_entropy(net.classifier(torch.cat([x, z])) + offset, torch.cat([y, y]))


def seen_by(x, own):
    """What a gather without gradient gives the rank that owns the rows `own`: only those are differentiable."""
    return torch.cat([x[:own.start].detach(), x[own], x[own.stop:].detach()])


def exact(net, images, y, offset, ranks):
    """One process, the whole mini-batch, PyTorch's own module."""
    x = net.backbone(images)
    loss = both_streams(net, x, net.batchformer(x.unsqueeze(1)).squeeze(1), y, offset)
    return loss, loss


def local_attention(net, images, y, offset, ranks):
    """DDP around the network: each rank attends to its own rows."""
    x = net.backbone(images)
    z = torch.cat([encoder_layer(net.batchformer, x[r], x[r]) for r in ranks])
    loss = both_streams(net, x, z, y, offset)
    return loss, loss


def gather_without_gradient(net, images, y, offset, ranks):
    """Features gathered under no_grad, the own slice put back; the loss of the own rows; sums are right."""
    x = net.backbone(images)
    z = torch.cat([encoder_layer(net.batchformer, x[r], seen_by(x, r)) for r in ranks])
    loss = both_streams(net, x, z, y, offset)
    return loss, loss


def whole_loss_averaged(net, images, y, offset, ranks):
    """The same gather, then the whole mini-batch's loss on every rank; DDP averages the gradients."""
    x = net.backbone(images)
    each = []
    for r in ranks:
        seen = seen_by(x, r)
        each.append(both_streams(net, seen, encoder_layer(net.batchformer, seen, seen), y, offset))
    mean = sum(each) / len(each)
    return mean, mean


def mean_for_sum(net, images, y, offset, ranks):
    """Exact but for one division: losses already divided by the global rows, and gradients averaged by DDP."""
    loss, _ = exact(net, images, y, offset, ranks)
    return loss, loss / len(ranks)


def mean_of_means(net, images, y, offset, ranks):
    """Exact gather; each rank's loss is the mean of its own rows, averaged over ranks that own unequal slices."""
    x = net.backbone(images)
    z = net.batchformer(x.unsqueeze(1)).squeeze(1)
    loss = sum(both_streams(net, x[r], z[r], y[r], offset) for r in ranks) / len(ranks)
    return loss, loss


def local_batch_norm(net, images, y, offset, ranks):
    """Exact but for batch norm, whose statistics are each rank's own."""
    x = torch.cat([net.backbone(images[r]) for r in ranks])
    loss = both_streams(net, x, net.batchformer(x.unsqueeze(1)).squeeze(1), y, offset)
    return loss, loss
