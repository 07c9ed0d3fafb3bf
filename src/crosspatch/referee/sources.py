"""Where the referee's rules come from."""

ZHANG = "Zhang & Nanda 2023, arXiv 2309.16042"
HEIMERSHEIM = "Heimersheim & Nanda 2024, arXiv 2404.15255"
HYDRA = "McGrath et al. 2023, arXiv 2307.15771"
OWN = "crosspatch, docs/practice.md"
