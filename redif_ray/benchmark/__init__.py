"""`redif benchmark`: what Ray costs and brings, and large networks, side by side on the machine it runs on."""
