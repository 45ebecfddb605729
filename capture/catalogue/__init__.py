"""Published configurations of well-known models; `foretrace.capture.models` reads them."""
