"""Where stages run: one module per place, all behind the protocol in ``base``."""
