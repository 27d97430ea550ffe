"""The persistent dict."""
