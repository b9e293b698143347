"""Serve exported models over HTTP, with a page for the browser.

python src/serve.py model=logs/latest                              # -> http://127.0.0.1:8000
python src/serve.py model=logs/latest/export/model_int8.onnx port=8080
python src/serve.py 'model=[flowers.onnx,insects.onnx]'            # several: POST /models/insects/predict
python src/serve.py config=models.yaml                             # names, versions, and the share of each
"""

from imago.serve.serve import main

if __name__ == "__main__":
    main()
