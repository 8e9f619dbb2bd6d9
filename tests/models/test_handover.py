"""Weights of the classifier in the detector: same keys, same features."""

import pytest
import torch
from mmengine.logging import MMLogger

from helpers.configs import build, load, shrink


@pytest.mark.parametrize('name', ['scconv_resnet50_imagenet', 'scconv_resnet101_imagenet'])
def test_classifier_fills_the_detector_s_backbone(name, tmp_path, caplog):
    classifier = build(shrink(load(name)))
    classifier.train()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        classifier.backbone(torch.randn(4, 3, 64, 64))  # moves BN's statistics
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'epoch_100.pth')

    cfg = shrink(load(name.replace('scconv_resnet', 'retinanet_scconv_r').replace('imagenet', 'coco')))
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'epoch_100.pth'), prefix='backbone.'
    )
    detector = build(cfg)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    detector.backbone.init_weights()
    logger.removeHandler(caplog.handler)

    assert list(detector.backbone.state_dict()) == list(classifier.backbone.state_dict())
    for (key, ours), theirs in zip(
        detector.backbone.state_dict().items(), classifier.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key
    assert 'unexpected key' not in caplog.text
    assert 'missing key' not in caplog.text

    x = torch.randn(1, 3, 64, 64)
    for model in (classifier, detector):
        model.eval()
    assert torch.equal(detector.backbone(x)[-1], classifier.backbone(x)[-1])
