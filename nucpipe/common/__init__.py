"""What every floor stands on: errors, model files, published data sets, training aids. It imports none of them."""
