"""What `shardwatt check-site` compares with a site's file: Slurm, folders, environments. Submits nothing."""
