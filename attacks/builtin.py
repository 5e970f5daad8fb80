"""The built-in perturbations: the name of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping

DECIDES_NO_NUMBER = True

# By module of `attacks`: registered name to class.
_OWN: Mapping[str, Mapping[str, str]] = {
    "benign.noise": {
        "gaussian": "Gaussian", "uniform": "Uniform", "noise.random-sign": "RandomSign",
        "noise.salt-and-pepper": "SaltAndPepper", "noise.shot": "Shot", "noise.speckle": "Speckle",
    },
    "benign.corruptions": {
        "corruption.gaussian-noise": "GaussianNoise", "corruption.shot-noise": "ShotNoise",
        "corruption.impulse-noise": "ImpulseNoise", "corruption.speckle-noise": "SpeckleNoise",
        "corruption.brightness": "Brightness", "corruption.contrast": "Contrast", "corruption.saturate": "Saturate",
        "corruption.elastic": "Elastic", "corruption.pixelate": "Pixelate", "corruption.jpeg": "JPEG",
    },
    "benign.blurs": {
        "corruption.gaussian-blur": "GaussianBlur", "corruption.defocus-blur": "DefocusBlur",
        "corruption.glass-blur": "GlassBlur", "corruption.motion-blur": "MotionBlur",
        "corruption.zoom-blur": "ZoomBlur",
    },
    "benign.weather": {
        "corruption.fog": "Fog", "corruption.frost": "Frost", "corruption.snow": "Snow",
        "corruption.spatter": "Spatter",
    },
    "benign.spatial": {"spatial.rotate": "Rotate", "spatial.translate": "Translate"},
    "native.pgd": {"fgsm": "FGSM", "pgd": "PGD"},
    "native.autopgd": {"autopgd": "AutoPGD"},
    "native.square": {"square": "Square"},
    "native.autoattack": {"autoattack": "AutoAttack"},
    "from_file": {"file": "FromFile"},
    "adaptive.surrogate": {"adaptive-pgd": "SurrogateAttack"},
    "adaptive.feature_matching": {"feature-matching": "FeatureMatching"},
    "adaptive.score_square": {"adaptive-square": "ScoreSquare"},
    "adaptive.decision": {"adaptive-decision": "DecisionAttack"},
    "adaptive.worst_case": {"adaptive": "WorstCase"},
}  # fmt: skip

# Library attacks bear the names that their classes have in the library.
_BORROWED: Mapping[tuple[str, str], str] = {
    ("torchattacks.adapter", "torchattacks"): "CW",
    ("torchattacks.gradient", "torchattacks"): """
        GN FGSM FFGSM BIM RFGSM PGD PGDL2 EOTPGD TPGD UPGD Jitter PGDRS PGDRSL2 MIFGSM NIFGSM SINIFGSM VMIFGSM VNIFGSM
        DIFGSM TIFGSM PIFGSM PIFGSMPP""",
    ("torchattacks.other", "torchattacks"): """
        APGD APGDL2 APGDT APGDTL2 FAB FABL2 Square SquareL2 AutoAttack AutoAttackL2 DeepFool SparseFool EADL1 EADEN JSMA
        OnePixel SPSA Pixle""",
    ("foolbox.gradient", "foolbox"): """
        L2DeepFoolAttack LinfDeepFoolAttack L1FastGradientAttack L2FastGradientAttack LinfFastGradientAttack
        L1ProjectedGradientDescentAttack L2ProjectedGradientDescentAttack LinfProjectedGradientDescentAttack
        L1AdamProjectedGradientDescentAttack L2AdamProjectedGradientDescentAttack
        LinfAdamProjectedGradientDescentAttack L1BasicIterativeAttack L2BasicIterativeAttack LinfBasicIterativeAttack
        L1AdamBasicIterativeAttack L2AdamBasicIterativeAttack LinfAdamBasicIterativeAttack
        L1MomentumIterativeFastGradientMethod L2MomentumIterativeFastGradientMethod
        LinfMomentumIterativeFastGradientMethod SparseL1DescentAttack VirtualAdversarialAttack L2CarliniWagnerAttack
        EADAttack DDNAttack NewtonFoolAttack L1FMNAttack L2FMNAttack LInfFMNAttack L0BrendelBethgeAttack
        L1BrendelBethgeAttack L2BrendelBethgeAttack LinfinityBrendelBethgeAttack""",
    ("foolbox.black_box", "foolbox"): """
        L2AdditiveGaussianNoiseAttack L2AdditiveUniformNoiseAttack LinfAdditiveUniformNoiseAttack
        L2ClippingAwareAdditiveGaussianNoiseAttack L2ClippingAwareAdditiveUniformNoiseAttack
        L2RepeatedAdditiveGaussianNoiseAttack L2RepeatedAdditiveUniformNoiseAttack
        LinfRepeatedAdditiveUniformNoiseAttack L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack
        L2ClippingAwareRepeatedAdditiveUniformNoiseAttack SaltAndPepperNoiseAttack LinearSearchBlendedUniformNoiseAttack
        L2ContrastReductionAttack BinarySearchContrastReductionAttack LinearSearchContrastReductionAttack
        InversionAttack GaussianBlurAttack SpatialAttack BoundaryAttack HopSkipJumpAttack PointwiseAttack
        BinarizationRefinementAttack""",
}

BUILTIN: Mapping[str, str] = {
    **{
        name: f"aftershock.attacks.{module}:{target}"
        for module, names in _OWN.items()
        for name, target in names.items()
    },
    **{
        f"{library}.{name}": f"aftershock.attacks.libraries.{module}:{name}"
        for (module, library), names in _BORROWED.items()
        for name in names.split()
    },
}
