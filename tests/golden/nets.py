"""The networks of the PyTorch references: the CIFAR family's ResNet, and a backbone with the BatchFormer behind it."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class BasicBlock(nn.Module):
    """CIFAR block with option-A shortcut (He et al. 2016, section 4.2)."""

    def __init__(self, ci, co, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(ci, co, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(co)
        self.conv2 = nn.Conv2d(co, co, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(co)
        self.stride, self.pad = stride, co - ci

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.pad:
            front = self.pad // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.pad - front))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self, blocks, channels_in):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        ci = 16
        for s, co in enumerate((16, 32, 64)):
            stage = [BasicBlock(ci if i == 0 else co, co, 2 if i == 0 and s else 1) for i in range(blocks)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
            ci = co

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


class Net(nn.Module):
    """Backbone, BatchFormer on the pooled features, one classifier on both streams."""

    def __init__(self, backbone, width, heads, classes, classifier):
        super().__init__()
        self.backbone = backbone
        self.batchformer = nn.TransformerEncoderLayer(width, heads, width, 0.0)
        self.classifier_name = classifier
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        x = self.backbone(x)
        z = self.batchformer(x.unsqueeze(1)).squeeze(1)
        return self.classifier(torch.cat([x, z]))

    def public_name(self, name):
        return name.replace("backbone.", "", 1).replace("classifier.", self.classifier_name + ".", 1)
