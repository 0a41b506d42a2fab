"""What can be found out about data, processes and models besides scoring samples."""
