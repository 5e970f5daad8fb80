"""The built-in detectors: the name of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping

DECIDES_NO_NUMBER = True

BUILTIN: Mapping[str, str] = {
    "bitvector": "aftershock.detectors.bits.bitvector:BitVector",
    "codeshift": "aftershock.detectors.activations.codeshift:CodeShift",
    "latent": "aftershock.detectors.activations.latent:Latent",
    "layerwise": "aftershock.detectors.activations.layer_autoencoders:LayerAutoencoders",
    "nap": "aftershock.detectors.bits.nap:ActivationPatterns",
    "safetynet": "aftershock.detectors.activations.safetynet:SafetyNet",
    "mahalanobis": "aftershock.detectors.activations.mahalanobis:Mahalanobis",
    "knn": "aftershock.detectors.activations.knn:Neighbours",
    "lid": "aftershock.detectors.activations.lid:Lid",
    "dknn": "aftershock.detectors.activations.dknn:DeepNeighbours",
    "kde": "aftershock.detectors.activations.kde:KernelDensity",
    "vim": "aftershock.detectors.logits.vim_gradnorm:Vim",
    "gradnorm": "aftershock.detectors.logits.vim_gradnorm:GradNorm",
    "odin": "aftershock.detectors.logits.odin:Odin",
    "cpr": "aftershock.detectors.logits.consistency:ConsistentPrediction",
    "feature-squeezing": "aftershock.detectors.logits.feature_squeezing:FeatureSqueezing",
    "msp": "aftershock.detectors.logits.baselines:MaxSoftmax",
    "energy": "aftershock.detectors.logits.baselines:Energy",
    "max-logit": "aftershock.detectors.logits.baselines:MaxLogit",
    "entropy": "aftershock.detectors.logits.baselines:Entropy",
    "margin": "aftershock.detectors.logits.baselines:Margin",
    "kl-matching": "aftershock.detectors.logits.baselines:KLMatching",
    "combination": "aftershock.detectors.combine.combination:CombinedScore",
}
