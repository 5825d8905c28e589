"""Classifier-free guidance as a transformation of denoisers."""

from pdistill.diffusion.denoisers import Denoiser


def guide(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """x_hat = (1 + w) conditional - w unconditional (Ho & Salimans 2022, eq. 6).

    w = 0 is no guidance. Being linear, this is the same rule for x, eps and v. One call costs
    one evaluation of each denoiser.
    """

    def denoise(z, logsnr):
        return (1 + weight) * conditional(z, logsnr) - weight * unconditional(z, logsnr)

    return denoise
