"""The configuration file of the official release, as published."""

OFFICIAL = """
data :
  name: MVTec
  data_dir: datasets/MVTec
  category: hazelnut
  image_size: 256
  batch_size: 32
  DA_batch_size: 16
  test_batch_size: 16
  mask : True
  input_channel : 3
model:
  DDADS: False
  checkpoint_dir: checkpoints/MVTec
  checkpoint_name: weights
  exp_name: default
  feature_extractor: wide_resnet101_2
  learning_rate: 3e-4
  weight_decay: 0.05
  epochs: 3000
  load_chp : 2000
  DA_epochs: 10
  DA_chp: 3
  v : 1
  w : 5
  w_DA : 3
  DLlambda : 0.1
  trajectory_steps: 1000
  test_trajectoy_steps: 250
  test_trajectoy_steps_DA: 250
  skip : 25
  skip_DA : 25
  eta : 1
  beta_start : 0.0001
  beta_end : 0.02
  device: 'cuda'
  save_model: True
  num_workers : 2
  seed : 42
metrics:
  auroc: True
  pro: True
  misclassifications: False
  visualisation: True
"""
