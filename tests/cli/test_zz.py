import os,sys
def test_engines(ckpt, model, tmp_path, monkeypatch):
    import conftest
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path/"site"), str(conftest.HERE), "/tmp/shadow"]))
    f=open("/tmp/ex.txt","w")
    for e in ("local","processes","dask","ray"):
        o=ckpt("convert",model,tmp_path/e,"--to","toy","--engine",e,"--workers","2")
        f.write(f"{e} {o.code} {o.out} {o.err}\n")
        if o.code==0: f.write(str((tmp_path/e/"toy.safetensors").read_bytes()==(tmp_path/"local"/"toy.safetensors").read_bytes())+"\n")
    # failing input
    o=ckpt("convert",model,tmp_path/"x","--to","toy","--engine","dask","--engine-address","tcp://127.0.0.1:1"); f.write(f"{o}\n")
    import shutil, numpy as np
    def big(t): t["final_norm.weight"][0]=1e30
