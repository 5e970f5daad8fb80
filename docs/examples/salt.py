from aftershock import Perturbation, PerturbationInfo, register_perturbation


@register_perturbation("salt")
class Salt(Perturbation):
    """Set pixels to white.

    Args:
        share: Probability of each pixel.
    """

    info = PerturbationInfo(title="Salt", kind="noise", family="noise", gradients=False, stochastic=True)

    def __init__(self, share: float = 0.1) -> None:
        self.share = share

    def perturb(self, model, images, labels, draws):
        return images.masked_fill(draws.uniform(images[:, :1]) < self.share, 1.0)
