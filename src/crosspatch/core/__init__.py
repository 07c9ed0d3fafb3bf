"""What every floor needs: errors, statistics, files, progress, provenance."""
