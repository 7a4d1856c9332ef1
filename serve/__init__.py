"""The Ray Serve application. Imports data_pipeline and model; takes training output only as a bundle on disk."""
