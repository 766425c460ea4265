"""`redif benchmark pipeline`: what Ray costs and brings, as ratios taken side by side on the machine it runs on."""
