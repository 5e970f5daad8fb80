from aftershock import register_perturbation


@register_perturbation("towards-grey", eps=0.1, gradients=False)
def towards_grey(model, images, labels, eps):
    """Move every pixel towards grey by at most eps."""
    return images + (0.5 - images).clamp(-eps, eps)
