"""What operators and other programs ask an ingress about the deployment: health, descriptors, receipts."""
