"""HoVer-Net: the compact and the published network, and the way from maps to nuclei."""
