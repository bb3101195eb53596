"""What programs use that send jobs and orders: EdgeClient, and what it keeps of each until its end."""
